/* Makes a QEMU's TLS 1.3 sessions renew their keys after every REKEY_EVERY records that they send.
 *
 * GnuTLS renews them by itself after 2^24 records, in the thread that sends: so does this, in front
 * of gnutls_record_send. REKEY_PEER=1 asks the other side to renew its own as well. Never between a
 * send that was refused for now and its repetition, which has to come with the same data.
 *
 * Loaded by tests/campaign/rekey.py (LD_PRELOAD).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

enum { AGAIN = -28, INTERRUPTED = -52, SHOWN = 100 };

static ssize_t (*send_)(void *, const void *, size_t);
static int (*update_)(void *, unsigned);
static atomic_ulong sent, made;
static unsigned long every;
static unsigned peer;
static __thread void *busy, *due;

__attribute__((constructor)) static void begin(void)
{
    char *words = getenv("REKEY_EVERY");

    every = words ? strtoul(words, 0, 10) : 0;
    peer = getenv("REKEY_PEER") ? 1 : 0;
    send_ = dlsym(RTLD_NEXT, "gnutls_record_send");
    update_ = dlsym(RTLD_NEXT, "gnutls_session_key_update");
}

ssize_t gnutls_record_send(void *session, const void *data, size_t length)
{
    ssize_t done;

    if (every && (due == session || (busy != session && ++sent % every == 0))) {
        int answer = update_(session, peer);

        due = 0;
        if (answer == 0) {
            if (++made % SHOWN == 0)
                fprintf(stderr, "rekey: %lu records, %lu updates\n", sent, made);
        } else if (answer == AGAIN || answer == INTERRUPTED) {
            due = session; /* QEMU sends again, and the keys are renewed first */
            return answer;
        } else {
            fprintf(stderr, "rekey: error %d\n", answer);
        }
    }
    done = send_(session, data, length);
    busy = done < 0 ? session : 0;
    return done;
}
