/* The native decoders under libFuzzer with ASan and UBSan: RESP replies in pieces, then packed; records; entries.
 *
 * The first byte chooses the target, the second the size of the pieces. scripts/check fuzz builds and runs it.
 */
#include <stdlib.h>
#include <string.h>

#include "../../hdad/native/frame.h"
#include "../../hdad/native/pack.h"
#include "../../hdad/native/resp.h"

static void must(bool condition)
{
    if (!condition)
        abort();
}

static void pack_all(const struct hdad_resp *parser, const uint8_t *data, size_t size, size_t room)
{
    uint8_t *out = malloc(room);
    must(out != NULL);
    for (uint32_t s = 0; s < parser->stream_count; s++) {
        uint32_t skip = 0;
        while (skip < parser->streams[s].entry_count) {
            struct hdad_resp_packed packed = hdad_resp_pack(parser, data, size, s, skip, out, room, 1u << 20);
            size_t offset = 0;
            const char *wrong = hdad_records_check(out, packed.size, packed.entry_count, &offset);
            must(wrong == NULL || strstr(wrong, "position") != NULL);
            skip += packed.entry_count ? packed.entry_count : 1;
        }
    }
    free(out);
}

/* Each piece is scanned in a buffer that ends with it, so that reading on is seen. */
static void reply(const uint8_t *bytes, size_t size, size_t step)
{
    struct hdad_resp parser;
    hdad_resp_init(&parser);
    enum hdad_resp_status status = HDAD_RESP_MORE;
    uint8_t *data = NULL;
    size_t have = 0;
    while (have < size && status == HDAD_RESP_MORE) {
        size_t more = step < size - have ? step : size - have;
        uint8_t *larger = malloc(have + more);
        must(larger != NULL);
        if (have)
            memcpy(larger, data, have);
        memcpy(larger + have, bytes + have, more);
        free(data);
        data = larger;
        have += more;
        status = hdad_resp_scan(&parser, data, have);
    }
    must(parser.entry_capacity <= 64 + 4 * size && parser.stream_capacity <= 64 + 4 * size); /* memory grows with what arrived */
    if (status == HDAD_RESP_DONE) {
        must(parser.position <= have);
        if (parser.kind == HDAD_RESP_STREAMS)
            pack_all(&parser, data, parser.position, 24 + step * 16);
    }
    hdad_resp_free(&parser);
    free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (size < 2)
        return 0;
    struct hdad_frame frame;
    hdad_frame_load(bytes, size, &frame);
    size_t step = 1 + bytes[1];
    size_t offset = 0;
    if (bytes[0] & 1)
        hdad_records_check(bytes + 2, size - 2, step, &offset);
    else
        reply(bytes + 2, size - 2, step);
    return 0;
}
