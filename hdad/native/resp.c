#include "resp.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "pack.h"

static_assert(sizeof(struct hdad_resp_entry) == 32, "two index rows per cache line");

/* What comes next. The order within a stream is NAME ENTRIES (ENTRY ID STRINGS STRING*)*; RESP2 has PAIR before each. */
enum state { TOP, PAIR, NAME, ENTRIES, ENTRY, ID, STRINGS, STRING, WALK, DONE };

enum token_type { AGGREGATE, BULK, NIL, LINE };

struct token {
    enum token_type type;
    uint8_t mark;     /* the type byte */
    uint64_t count;   /* AGGREGATE: elements, a map's keys and values counted one by one */
    size_t text;      /* BULK, LINE: offset */
    size_t text_size; /* BULK, LINE */
    size_t end;       /* first byte after it */
};

static enum hdad_resp_status bad(struct hdad_resp *parser, const char *wrong)
{
    parser->wrong = wrong;
    parser->failed = true;
    return HDAD_RESP_BAD;
}

static enum hdad_resp_status more(struct hdad_resp *parser, size_t need)
{
    parser->need = need;
    return HDAD_RESP_MORE;
}

void hdad_resp_init(struct hdad_resp *parser)
{
    memset(parser, 0, sizeof *parser);
}

void hdad_resp_free(struct hdad_resp *parser)
{
    free(parser->streams);
    free(parser->entries);
    memset(parser, 0, sizeof *parser);
}

void hdad_resp_next(struct hdad_resp *parser)
{
    const struct hdad_resp old = *parser;
    memset(parser, 0, sizeof *parser);
    parser->streams = old.streams;
    parser->stream_capacity = old.stream_capacity;
    parser->entries = old.entries;
    parser->entry_capacity = old.entry_capacity;
}

/* The array, with room for one more element; NULL if there is no memory, then it is as it was. LIMIT: an element stands for several
 * bytes of a buffer of at most 2 GiB, so capacity fits 32 bits. */
static void *grow(void *array, uint32_t *capacity, uint32_t count, size_t element_size)
{
    if (count < *capacity)
        return array;
    const uint32_t larger = *capacity == 0 ? 64 : 2 * *capacity;
    void *moved = realloc(array, (size_t)larger * element_size);
    if (moved != NULL)
        *capacity = larger;
    return moved;
}

/* The number of a length line that begins at offset (after the type byte). -1 is nil. */
static enum hdad_resp_status length_line(struct hdad_resp *parser, const uint8_t *data, size_t size, uint64_t max, int64_t *number,
                                         size_t *end)
{
    size_t at = parser->position + 1;
    bool negative = false;
    uint64_t value = 0;
    unsigned digits = 0;
    if (at < size && data[at] == '-') {
        negative = true;
        at++;
    }
    for (; at < size && data[at] >= '0' && data[at] <= '9'; at++) {
        value = 10 * value + (uint64_t)(data[at] - '0');
        if (value > max || ++digits > 19)
            return bad(parser, "a length is too large");
    }
    if (at == size)
        return more(parser, size + 1);
    if (digits == 0 || (negative && value != 1))
        return bad(parser, "a length is not a number that is allowed");
    if (data[at] != '\r')
        return bad(parser, "a length does not end in CR LF");
    if (at + 1 == size)
        return more(parser, size + 1);
    if (data[at + 1] != '\n')
        return bad(parser, "a length does not end in CR LF");
    *number = negative ? -1 : (int64_t)value;
    *end = at + 2;
    return HDAD_RESP_DONE;
}

static enum hdad_resp_status bulk_token(struct hdad_resp *parser, const uint8_t *data, size_t size, struct token *token)
{
    int64_t length;
    size_t text;
    const enum hdad_resp_status status = length_line(parser, data, size, HDAD_RESP_STRING_MAX, &length, &text);
    if (status != HDAD_RESP_DONE)
        return status;
    if (length < 0) {
        if (token->mark != '$')
            return bad(parser, "a length is not a number that is allowed");
        token->type = NIL;
        token->end = text;
        return HDAD_RESP_DONE;
    }
    token->type = BULK;
    token->text = text;
    token->text_size = (size_t)length;
    token->end = text + (size_t)length + 2;
    if (size < token->end)
        return more(parser, token->end);
    if (data[token->end - 2] != '\r' || data[token->end - 1] != '\n')
        return bad(parser, "a string does not end in CR LF");
    if (token->mark == '=') { /* verbatim: three letters of format and a colon before the text */
        if (length < 4 || data[text + 3] != ':')
            return bad(parser, "a verbatim string without its format");
        token->text += 4;
        token->text_size -= 4;
    }
    return HDAD_RESP_DONE;
}

static enum hdad_resp_status line_token(struct hdad_resp *parser, const uint8_t *data, size_t size, struct token *token)
{
    size_t from = parser->position + 1;
    if (parser->searched > from)
        from = parser->searched;
    const uint8_t *feed = from < size ? memchr(data + from, '\n', size - from) : NULL;
    if (feed == NULL) {
        parser->searched = size;
        return more(parser, size + 1);
    }
    token->text = parser->position + 1;
    token->end = (size_t)(feed - data) + 1;
    if (token->end - token->text < 2 || feed[-1] != '\r')
        return bad(parser, "a line does not end in CR LF");
    token->text_size = token->end - token->text - 2;
    token->type = token->mark == '_' ? NIL : LINE;
    if (token->mark == '_' && token->text_size != 0)
        return bad(parser, "a null with text");
    return HDAD_RESP_DONE;
}

/* Reads the token at position, whole or not at all. */
static enum hdad_resp_status read_token(struct hdad_resp *parser, const uint8_t *data, size_t size, struct token *token)
{
    if (parser->position == size)
        return more(parser, size + 1);
    const uint8_t mark = data[parser->position];
    memset(token, 0, sizeof *token);
    token->mark = mark;
    switch (mark) {
    case '$':
    case '=':
    case '!':
        return bulk_token(parser, data, size, token);
    case '*':
    case '%':
    case '~':
    case '>':
    case '|': {
        int64_t count;
        const enum hdad_resp_status status = length_line(parser, data, size, HDAD_RESP_COUNT_MAX, &count, &token->end);
        if (status != HDAD_RESP_DONE)
            return status;
        if (count < 0 && mark != '*')
            return bad(parser, "a length is not a number that is allowed");
        token->type = count < 0 ? NIL : AGGREGATE;
        token->count = count < 0 ? 0 : mark == '%' || mark == '|' ? 2 * (uint64_t)count : (uint64_t)count;
        return HDAD_RESP_DONE;
    }
    case '+':
    case '-':
    case ':':
    case ',':
    case '#':
    case '(':
    case '_':
        return line_token(parser, data, size, token);
    default:
        return bad(parser, "an unknown type byte");
    }
}

static void accept(struct hdad_resp *parser, const struct token *token)
{
    parser->position = token->end;
    parser->searched = token->end;
}

/* The token at position does not fit XREAD's shape: walk the rest of the reply without a shape. */
static void leave_shape(struct hdad_resp *parser)
{
    const uint64_t later = (parser->streams_left - 1) * (parser->map ? 2 : 1);
    uint64_t *left = parser->left;
    uint32_t depth = 0;
    switch (parser->state) {
    case PAIR:
        left[depth++] = parser->streams_left;
        break;
    case NAME:
        left[depth++] = parser->map ? later + 2 : later;
        if (!parser->map)
            left[depth++] = 2;
        break;
    case ENTRIES:
        left[depth++] = parser->map ? later + 1 : later;
        if (!parser->map)
            left[depth++] = 1;
        break;
    default:
        left[depth++] = later;
        if (!parser->map)
            left[depth++] = 0;
        left[depth++] = parser->state == ENTRY ? parser->entries_left : parser->entries_left - 1;
        if (parser->state == ID)
            left[depth++] = 2;
        if (parser->state == STRINGS)
            left[depth++] = 1;
        if (parser->state == STRING) {
            left[depth++] = 0;
            left[depth++] = parser->strings_left;
        }
    }
    parser->depth = depth;
    parser->kind = HDAD_RESP_OTHER;
    parser->stream_count = 0;
    parser->entry_count = 0;
    parser->state = WALK;
}

static void after_entry(struct hdad_resp *parser)
{
    if (--parser->entries_left > 0)
        parser->state = ENTRY;
    else if (--parser->streams_left > 0)
        parser->state = parser->map ? NAME : PAIR;
    else
        parser->state = DONE;
}

/* A decimal u64. Nineteen digits cannot overflow; a twentieth is checked. */
static bool parse_number(const uint8_t **at, const uint8_t *end, uint64_t *number)
{
    const uint8_t *const start = *at, *p = start;
    const uint8_t *const safe_end = end - start > 19 ? start + 19 : end;
    uint64_t value = 0;
    unsigned digit;
    for (; p < safe_end && (digit = (unsigned)*p - '0') <= 9; p++)
        value = 10 * value + digit;
    if (p == start)
        return false;
    if (p == safe_end && p < end && (digit = (unsigned)*p - '0') <= 9) {
        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = 10 * value + digit;
        p++;
    }
    *at = p;
    *number = value;
    return true;
}

static bool parse_id(const uint8_t *text, size_t size, uint64_t *ms, uint64_t *seq)
{
    const uint8_t *at = text, *end = text + size;
    if (!parse_number(&at, end, ms) || at == end || *at++ != '-')
        return false;
    return parse_number(&at, end, seq) && at == end;
}

static enum hdad_resp_status add_entry(struct hdad_resp *parser, uint64_t ms, uint64_t seq)
{
    struct hdad_resp_stream *stream = &parser->streams[parser->stream_count - 1];
    struct hdad_resp_entry *entries = grow(parser->entries, &parser->entry_capacity, parser->entry_count, sizeof *entries);
    if (entries == NULL)
        return HDAD_RESP_NO_MEMORY;
    parser->entries = entries;
    struct hdad_resp_entry *entry = &entries[parser->entry_count];
    if (stream->entry_count > 0 && (ms < entry[-1].ms || (ms == entry[-1].ms && seq <= entry[-1].seq)))
        return bad(parser, "a stream's ids do not grow");
    *entry = (struct hdad_resp_entry){.ms = ms, .seq = seq, .body_size = 4};
    parser->entry_count++;
    stream->entry_count++;
    parser->state = STRINGS;
    return HDAD_RESP_DONE;
}

static enum hdad_resp_status take_id(struct hdad_resp *parser, const uint8_t *data, const struct token *token)
{
    uint64_t ms, seq;
    if (!parse_id(data + token->text, token->text_size, &ms, &seq))
        return bad(parser, "an entry's id is not MS-SEQ");
    return add_entry(parser, ms, seq);
}

/* The count of an entry's strings is known; they come next, if there are any. */
static void open_strings(struct hdad_resp *parser, uint64_t string_count)
{
    parser->entries[parser->entry_count - 1].pair_count = (uint32_t)(string_count / 2);
    parser->strings_left = string_count;
    parser->string_end = 0;
    parser->state = STRING;
    if (string_count == 0)
        after_entry(parser);
}

static enum hdad_resp_status take_name(struct hdad_resp *parser, const struct token *token)
{
    struct hdad_resp_stream *streams = grow(parser->streams, &parser->stream_capacity, parser->stream_count, sizeof *streams);
    if (streams == NULL)
        return HDAD_RESP_NO_MEMORY;
    parser->streams = streams;
    streams[parser->stream_count++] = (struct hdad_resp_stream){
        .name = (uint32_t)token->text, .name_size = (uint32_t)token->text_size, .first_entry = parser->entry_count};
    parser->state = ENTRIES;
    return HDAD_RESP_DONE;
}

/* Rewrites a finished string as size and text, and links its predecessor in the entry to it. */
static void take_string(struct hdad_resp *parser, uint8_t *data, size_t text, size_t text_size)
{
    struct hdad_resp_entry *entry = &parser->entries[parser->entry_count - 1];
    const uint32_t size_at = (uint32_t)(text - 4); /* "$0\r\n" is the shortest that can stand before a text: 4 bytes */
    if (parser->string_end == 0)
        entry->strings = size_at;
    else
        data[parser->string_end] = (uint8_t)(size_at - parser->string_end); /* over its CR; at most 2 + 24 + 4 - 4 */
    hdad_store_u32(data + size_at, (uint32_t)text_size);
    parser->string_end = (uint32_t)(text + text_size);
    entry->body_size += 4 + (uint32_t)text_size;
    if (--parser->strings_left == 0)
        after_entry(parser);
}

/* The rest is the loop in which a reply's time is spent: entries of the usual form, whole ones. It does the same as the tokens above,
 * in one step per entry, and leaves to them whatever is cut, long, or unusual: false. FAST_HEAD bytes hold "*2\r\n$41\r\n", an id of
 * 41 bytes, "\r\n*99999999\r\n" with room to spare, so that a head is read without asking for the end of data at each byte. */
#define FAST_HEAD 96u
#define FAST_STRING 16u /* "$99999999\r\n" with room to spare */

/* A length of one to eight digits and its CR LF. NULL: something else. Reads at most 11 bytes. */
static inline const uint8_t *fast_length(const uint8_t *p, uint32_t *length)
{
    unsigned digit = (unsigned)*p - '0';
    uint32_t value = digit;
    if (digit > 9)
        return NULL;
    const uint8_t *const last = p + 8;
    for (p++; (digit = (unsigned)*p - '0') <= 9; p++) {
        if (p == last)
            return NULL;
        value = 10 * value + digit;
    }
    *length = value;
    return p[0] == '\r' && p[1] == '\n' ? p + 2 : NULL;
}

/* Eight decimal digits at once (Lemire, "Quickly parsing eight digits", 2018). False: not all are digits. */
static inline bool eight_digits(const uint8_t *p, uint64_t *number)
{
    uint64_t text = hdad_load_u64(p);
    if ((((text & UINT64_C(0xF0F0F0F0F0F0F0F0)) | (((text + UINT64_C(0x0606060606060606)) & UINT64_C(0xF0F0F0F0F0F0F0F0)) >> 4)) !=
         UINT64_C(0x3333333333333333)))
        return false;
    text -= UINT64_C(0x3030303030303030);
    text = text * 10 + (text >> 8);
    *number = (((text & UINT64_C(0x000000FF000000FF)) * (UINT64_C(100) + (UINT64_C(1000000) << 32))) +
               (((text >> 16) & UINT64_C(0x000000FF000000FF)) * (UINT64_C(1) + (UINT64_C(10000) << 32)))) >>
              32;
    return true;
}

/* A decimal of one to 18 digits, which cannot overflow. NULL: something else. Reads at most 19 bytes. */
static inline const uint8_t *fast_number(const uint8_t *p, uint64_t *number)
{
    uint64_t value = 0;
    const uint8_t *const start = p, *const last = p + 18;
    if (eight_digits(p, &value))
        p += 8;
    for (unsigned digit; (digit = (unsigned)*p - '0') <= 9; p++) {
        if (p == last)
            return NULL;
        value = 10 * value + digit;
    }
    *number = value;
    return p > start ? p : NULL;
}

/* "*2\r\n$15\r\n1700000000000-0\r\n*4\r\n": the head of an entry that has strings. */
static inline const uint8_t *fast_head(const uint8_t *p, uint64_t *ms, uint64_t *seq, uint32_t *string_count)
{
    uint32_t id_size;
    if (memcmp(p, "*2\r\n$", 5) != 0 || (p = fast_length(p + 5, &id_size)) == NULL)
        return NULL;
    const uint8_t *const id = p;
    if ((p = fast_number(p, ms)) == NULL || *p++ != '-' || (p = fast_number(p, seq)) == NULL || (size_t)(p - id) != id_size)
        return NULL;
    if (memcmp(p, "\r\n*", 3) != 0 || (p = fast_length(p + 3, string_count)) == NULL)
        return NULL;
    return *string_count == 0 || *string_count % 2 != 0 ? NULL : p;
}

/* The strings of the entry that is open, as far as they are whole and plain. True: the entry is finished. */
static bool fast_strings(struct hdad_resp *parser, uint8_t *data, size_t size)
{
    struct hdad_resp_entry *const entry = &parser->entries[parser->entry_count - 1];
    const uint8_t *const end = data + size;
    const uint8_t *position = data + parser->position;
    uint8_t *previous = parser->string_end == 0 ? NULL : data + parser->string_end;
    uint64_t left = parser->strings_left;
    uint32_t body_size = entry->body_size;
    while (left > 0) {
        uint32_t length;
        const uint8_t *text;
        if ((size_t)(end - position) < FAST_STRING || *position != '$' || (text = fast_length(position + 1, &length)) == NULL)
            break;
        if ((size_t)(end - text) < (size_t)length + 2 || text[length] != '\r' || text[length + 1] != '\n')
            break;
        uint8_t *const size_at = data + (text - data) - 4;
        if (previous == NULL)
            entry->strings = (uint32_t)(size_at - data);
        else
            *previous = (uint8_t)(size_at - previous);
        hdad_store_u32(size_at, length);
        previous = size_at + 4 + length;
        position = previous + 2;
        body_size += 4 + length;
        left--;
    }
    parser->position = (size_t)(position - data);
    parser->string_end = previous == NULL ? 0 : (uint32_t)(previous - data);
    parser->strings_left = left;
    entry->body_size = body_size;
    return left == 0;
}

static enum hdad_resp_status fast_entries(struct hdad_resp *parser, uint8_t *data, size_t size)
{
    if (parser->state == STRING && fast_strings(parser, data, size))
        after_entry(parser);
    while (parser->state == ENTRY && size - parser->position >= FAST_HEAD) {
        uint64_t ms, seq;
        uint32_t string_count;
        const uint8_t *const strings = fast_head(data + parser->position, &ms, &seq, &string_count);
        if (strings == NULL)
            break;
        const enum hdad_resp_status status = add_entry(parser, ms, seq);
        if (status != HDAD_RESP_DONE)
            return status;
        parser->position = (size_t)(strings - data);
        open_strings(parser, string_count);
        if (!fast_strings(parser, data, size))
            break;
        after_entry(parser);
    }
    return HDAD_RESP_DONE;
}

static enum hdad_resp_status take_top(struct hdad_resp *parser, const struct token *token)
{
    switch (token->type) {
    case NIL:
        parser->kind = HDAD_RESP_NIL;
        parser->state = DONE;
        break;
    case BULK:
    case LINE:
        parser->kind = HDAD_RESP_OTHER;
        if (token->mark == '-' || token->mark == '!') {
            parser->kind = HDAD_RESP_ERROR;
            parser->error = (uint32_t)token->text;
            parser->error_size = (uint32_t)token->text_size;
        }
        parser->state = DONE;
        break;
    case AGGREGATE:
        parser->kind = HDAD_RESP_STREAMS;
        parser->map = token->mark == '%';
        if (token->mark == '>' || token->mark == '|') {
            parser->skipping = true;
            parser->left[0] = token->count;
            parser->depth = 1;
            parser->state = WALK;
        } else if (token->mark == '~') {
            parser->kind = HDAD_RESP_OTHER;
            parser->left[0] = token->count;
            parser->depth = 1;
            parser->state = WALK;
        } else {
            parser->streams_left = parser->map ? token->count / 2 : token->count;
            parser->state = token->count == 0 ? DONE : parser->map ? NAME : PAIR;
        }
    }
    return HDAD_RESP_DONE;
}

/* Takes a token in a state of the shape. False: it does not fit. */
static bool take_shaped(struct hdad_resp *parser, uint8_t *data, const struct token *token, enum hdad_resp_status *status)
{
    const bool string = token->type == BULK && token->mark != '!';
    const bool array = token->type == AGGREGATE && token->mark == '*';
    *status = HDAD_RESP_DONE;
    switch (parser->state) {
    case PAIR:
    case ENTRY:
        if (!array || token->count != 2)
            return false;
        parser->state = parser->state == PAIR ? NAME : ID;
        return true;
    case NAME:
        if (string)
            *status = take_name(parser, token);
        return string;
    case ENTRIES:
        if (!array && token->type != NIL)
            return false;
        parser->entries_left = token->count + 1;
        after_entry(parser);
        return true;
    case ID:
        if (string)
            *status = take_id(parser, data, token);
        return string;
    case STRINGS:
        /* Nil: an entry that was deleted while pending. XREAD never shows it, XREADGROUP does. */
        if (token->type != NIL && ((!array && !(token->type == AGGREGATE && token->mark == '%')) || token->count % 2 != 0))
            return false;
        open_strings(parser, token->count);
        return true;
    default:
        if (string)
            take_string(parser, data, token->text, token->text_size);
        return string;
    }
}

/* Walks one token without looking at the shape. */
static enum hdad_resp_status walk(struct hdad_resp *parser, const struct token *token)
{
    if (token->mark == '>')
        return bad(parser, "a push inside a reply");
    if (token->mark != '|') /* an attribute is not an element, it precedes one */
        parser->left[parser->depth - 1]--;
    if (token->type == AGGREGATE && token->count > 0) {
        if (parser->depth == HDAD_RESP_DEPTH_MAX)
            return bad(parser, "nested too deep");
        parser->left[parser->depth++] = token->count;
    }
    return HDAD_RESP_DONE;
}

/* Leaves the aggregates that are complete; at the outermost one the reply, or what was skipped before it, ends. */
static void close_walked(struct hdad_resp *parser)
{
    while (parser->depth > 0 && parser->left[parser->depth - 1] == 0)
        parser->depth--;
    if (parser->depth > 0)
        return;
    parser->state = parser->skipping ? TOP : DONE;
    if (parser->skipping)
        parser->start = parser->position;
    parser->skipping = false;
}

enum hdad_resp_status hdad_resp_scan(struct hdad_resp *parser, uint8_t *data, size_t size)
{
    if (parser->failed)
        return HDAD_RESP_BAD;
    if (size > HDAD_RESP_BUFFER_MAX)
        return bad(parser, "the buffer is larger than offsets can tell");
    while (parser->state != DONE) {
        if (parser->state == WALK) {
            close_walked(parser);
            if (parser->state != WALK)
                continue;
        }
        enum hdad_resp_status status = fast_entries(parser, data, size);
        if (status != HDAD_RESP_DONE)
            return status;
        if (parser->state == DONE)
            break;
        if (parser->need > size)
            return HDAD_RESP_MORE;
        struct token token;
        status = read_token(parser, data, size, &token);
        if (status != HDAD_RESP_DONE)
            return status;
        if (parser->state == TOP)
            status = take_top(parser, &token);
        else if (parser->state == WALK)
            status = walk(parser, &token);
        else if (!take_shaped(parser, data, &token, &status)) {
            leave_shape(parser);
            continue;
        }
        if (status != HDAD_RESP_DONE)
            return status;
        accept(parser, &token);
    }
    return HDAD_RESP_DONE;
}

uint64_t hdad_resp_record_size(const struct hdad_resp_entry *entry)
{
    return HDAD_RECORD_HEADER_SIZE + (uint64_t)entry->body_size;
}

void hdad_resp_pack_body(const struct hdad_resp_entry *entry, const uint8_t *data, uint8_t *out)
{
    size_t at = entry->strings;
    hdad_store_u32(out, entry->pair_count);
    out += 4;
    for (uint32_t left = 2 * entry->pair_count; left > 0; left--) {
        const size_t size = 4 + (size_t)hdad_load_u32(data + at);
        memcpy(out, data + at, size);
        out += size;
        at += size;
        at += data[at];
    }
}

const uint8_t *hdad_resp_only_value(const struct hdad_resp_entry *entry, const uint8_t *data, uint32_t *size)
{
    if (entry->pair_count != 1)
        return NULL;
    size_t at = entry->strings + 4 + (size_t)hdad_load_u32(data + entry->strings);
    at += data[at];
    *size = hdad_load_u32(data + at);
    return data + at + 4;
}

/* Packing for an entry that has a block of room after it on both sides: whole blocks are copied, and what is too much is
 * overwritten by the next string or record. A call of memcpy costs more than most strings take. */
#define PACK_BLOCK 32u
#define PACK_BLOCKS_MAX 8u

static void pack_body_fast(const struct hdad_resp_entry *entry, const uint8_t *data, uint8_t *out)
{
    size_t at = entry->strings;
    hdad_store_u32(out, entry->pair_count);
    out += 4;
    for (uint32_t left = 2 * entry->pair_count; left > 0; left--) {
        const size_t size = 4 + (size_t)hdad_load_u32(data + at);
        if (size <= PACK_BLOCK * PACK_BLOCKS_MAX) {
            for (size_t done = 0; done < size; done += PACK_BLOCK)
                memcpy(out + done, data + at + done, PACK_BLOCK);
        } else {
            memcpy(out, data + at, size);
        }
        out += size;
        at += size;
        at += data[at];
    }
}

struct hdad_resp_packed hdad_resp_pack(const struct hdad_resp *parser, const uint8_t *data, size_t size, uint32_t stream, uint32_t skip,
                                       uint8_t *out, size_t out_size, uint64_t body_max)
{
    const struct hdad_resp_stream *row = &parser->streams[stream];
    const struct hdad_resp_entry *entry = &parser->entries[row->first_entry + skip];
    struct hdad_resp_packed packed = {0, 0, 0, 0};
    for (uint32_t left = row->entry_count - skip; left > 0; left--, entry++) {
        const size_t room = out_size - packed.size;
        const uint64_t record_size = hdad_resp_record_size(entry);
        if (entry->body_size > body_max || record_size > room)
            break;
        uint8_t *to = out + packed.size;
        hdad_record_header(to, entry->body_size, HDAD_RECORD_KIND_ENTRY, entry->ms, entry->seq);
        /* An entry's strings lie before the next entry's, which the same reply holds: it stands between them and the end of data. */
        if (room - record_size >= PACK_BLOCK && left > 1 && entry[1].pair_count > 0 && size - entry[1].strings >= PACK_BLOCK)
            pack_body_fast(entry, data, to + HDAD_RECORD_HEADER_SIZE);
        else
            hdad_resp_pack_body(entry, data, to + HDAD_RECORD_HEADER_SIZE);
        packed.size += record_size;
        packed.entry_count++;
        packed.last_ms = entry->ms;
        packed.last_seq = entry->seq;
    }
    return packed;
}
