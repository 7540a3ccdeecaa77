/*
 * A plugin for QEMU's TCG that keeps the code of a COLO secondary fresh.
 *
 * TCG translates guest code and keeps the result. A checkpoint overwrites the secondary's memory
 * behind TCG's back, and since 10.2 QEMU keeps the translations that were made before. A page that
 * holds other code now would run as the old one (docs/qemu.md, "Stale translations").
 *
 * This plugin notes for every page of the host from which code was translated which part of it that
 * was, with a checksum. When the virtual machine starts again, as it does behind every checkpoint,
 * it has QEMU drop what was translated from a page whose checksum is another one now.
 *
 * It is compiled without any header and linked with nothing: QEMU itself has every function that
 * is declared here. A QEMU that lacks one refuses to load the plugin, by name.
 */

typedef unsigned char u8;
typedef unsigned long u64; /* host address, RAM address: every host that runs TCG here is LP64 */

/* Of the C library. */
extern void *calloc(u64 count, u64 size);
extern void free(void *memory);
extern void abort(void);
extern int strcmp(const char *one, const char *two);
extern int dprintf(int fd, const char *format, ...);
extern int clock_gettime(int clock, void *seconds_and_nanoseconds);
extern int pthread_mutex_lock(void *mutex);
extern int pthread_mutex_unlock(void *mutex);

/* QEMU's plugin interface, version 7 (11.1): the first whose callbacks all take user data. */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct info {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    _Bool system_emulation;
};
extern void qemu_plugin_register_vcpu_tb_trans_cb(
    u64 id, void (*callback)(struct qemu_plugin_tb *, void *), void *data);
extern void qemu_plugin_register_flush_cb(u64 id, void (*callback)(void *), void *data);
extern u64 qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, u64 index);
extern u64 qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
extern void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);

/* Of QEMU, not of its plugin interface; the signatures are those of 11.1. */
extern void *qemu_add_vm_change_state_handler(void (*callback)(void *, _Bool, int), void *data);
extern u64 qemu_ram_addr_from_host(void *host);
extern void tb_invalidate_phys_range(void *cpu, u64 first, u64 last);
extern _Bool migration_incoming_in_colo_state(void);

#define EXPORT __attribute__((visibility("default")))
#define PAGE 4096UL /* of an x86 guest */
#define LINE 32UL   /* checksums begin and end at multiples of it */
#define NO_RAM (~0UL)

EXPORT int qemu_plugin_version = 7;

/* What was translated: a hash table with open addressing, never more than half full. */
struct note {
    u8 *from; /* a page; with `crossing` the instruction that crosses the end of one */
    u64 sum;  /* of the page from `low` to `high`, as it was when last translated from */
    unsigned short low, high;
    u8 crossing;
    u8 live; /* something may be translated from it now */
};
static struct note *notes;
static u64 room, used;
static int overwritten; /* the guest's memory may be another one when it runs again */
static int always, logging;

/* Of glibc: all zero is an unlocked mutex. Held by vCPUs that translate at the same time. */
static u64 mutex[16];

/* A change of one word always changes the sum: each step is a bijection of the lane it falls in. */
static u64 checksum(const struct note *note)
{
    const u64 *word = (const u64 *)(note->from + note->low);
    const u64 *end = (const u64 *)(note->from + note->high);
    const u64 odd = 0x9e3779b97f4a7c15UL;
    u64 a = 1, b = 2, c = 3, d = 4;

    for (; word < end; word += 4) {
        a = (a ^ word[0]) * odd;
        b = (b ^ word[1]) * odd;
        c = (c ^ word[2]) * odd;
        d = (d ^ word[3]) * odd;
        a ^= a >> 29;
        b ^= b >> 29;
        c ^= c >> 29;
        d ^= d >> 29;
    }
    return a ^ (b << 16 | b >> 48) ^ (c << 32 | c >> 32) ^ (d << 48 | d >> 16);
}

static struct note *find(struct note *table, u64 size, const u8 *from)
{
    u64 at = ((u64)from * 0x9e3779b97f4a7c15UL) >> 17;

    while (table[at & (size - 1)].from && table[at & (size - 1)].from != from)
        at++;
    return &table[at & (size - 1)];
}

static void grow(void)
{
    u64 size = room ? room * 2 : 8192, i;
    struct note *table = calloc(size, sizeof(*table));

    /* As QEMU itself does without memory. A secondary that dies is replaced, a ruined one is not. */
    if (!table)
        abort();
    for (i = 0; i < room; i++)
        if (notes[i].live)
            *find(table, size, notes[i].from) = notes[i];
    for (used = 0, i = 0; i < size; i++)
        used += table[i].live;
    free(notes);
    notes = table;
    room = size;
}

static struct note *remember(u8 *from)
{
    struct note *note;

    if (used * 2 >= room)
        grow();
    note = find(notes, room, from);
    used += !note->from;
    note->from = from;
    return note;
}

/* Code was translated from the bytes `low` to `high` of a page, besides what is known of it. */
static void remember_part(u8 *page, u64 low, u64 high)
{
    struct note *note = remember(page);

    low &= ~(LINE - 1);
    high = (high + LINE - 1) & ~(LINE - 1);
    if (!note->live || low < note->low)
        note->low = low;
    if (!note->live || high > note->high)
        note->high = high;
    note->live = 1;
    note->sum = checksum(note);
}

/* Called by a vCPU that has just translated a block, with the guest's pages as it translated them.
 * A block lies in one page, or in two. */
static void translated(struct qemu_plugin_tb *tb, void *data)
{
    u64 count = qemu_plugin_tb_n_insns(tb);
    struct qemu_plugin_insn *insn;
    u64 first, last, end, page, next;

    if (!count)
        return;
    first = (u64)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
    insn = qemu_plugin_tb_get_insn(tb, count - 1);
    last = (u64)qemu_plugin_insn_haddr(insn);
    /* Code that does not lie in RAM is translated anew each time by QEMU itself. */
    if (!first || !last)
        return;
    page = first & ~(PAGE - 1);
    next = last & ~(PAGE - 1);
    end = (last & (PAGE - 1)) + qemu_plugin_insn_size(insn);
    pthread_mutex_lock(mutex);
    remember_part((u8 *)page, first - page, page == next && end < PAGE ? end : PAGE);
    if (page != next)
        remember_part((u8 *)next, 0, end < PAGE ? end : PAGE);
    if (end > PAGE) {
        /* Where the rest of the instruction lies is not told: such a block is always dropped. */
        struct note *note = remember((u8 *)last);

        note->crossing = note->live = 1;
    }
    pthread_mutex_unlock(mutex);
}

/* Called when QEMU has dropped every translation; no vCPU runs. */
static void flushed(void *data)
{
    u64 i;

    for (i = 0; i < room; i++)
        notes[i].from = 0, notes[i].live = 0;
    used = 0;
}

/*
 * Called when the vCPUs have stopped, and before they run again; none translates meanwhile.
 *
 * A secondary stops before each checkpoint is loaded, and nothing else writes a guest's memory
 * behind TCG's back: whoever did not stop as a secondary runs what it ran before.
 */
static void state_changed(void *data, _Bool running, int state)
{
    u64 i, ram, pages = 0, bytes = 0, stale = 0, crossing = 0;
    long began[2], ended[2];
    struct note *note;

    if (!running) {
        overwritten |= always || migration_incoming_in_colo_state();
        return;
    }
    if (!overwritten)
        return;
    overwritten = 0;
    clock_gettime(1, began);
    for (i = 0; i < room; i++) {
        note = &notes[i];
        if (!note->live)
            continue;
        ram = qemu_ram_addr_from_host(note->from);
        if (ram == NO_RAM) { /* memory that was unplugged */
            note->live = 0;
        } else if (note->crossing) {
            tb_invalidate_phys_range(0, ram, ram | (PAGE - 1));
            note->live = 0;
            crossing++;
        } else {
            pages++;
            bytes += note->high - note->low;
            if (checksum(note) == note->sum)
                continue;
            tb_invalidate_phys_range(0, ram, ram | (PAGE - 1));
            note->live = 0;
            stale++;
        }
    }
    clock_gettime(1, ended);
    if (logging)
        dprintf(2, "fresh-code: pages=%lu bytes=%lu stale=%lu crossing=%lu us=%ld\n", pages, bytes,
                stale, crossing,
                (ended[0] - began[0]) * 1000000 + (ended[1] - began[1]) / 1000);
}

EXPORT int qemu_plugin_install(u64 id, const struct info *info, int argc, char **argv)
{
    if (!info->system_emulation || strcmp(info->target_name, "x86_64"))
        return 1;
    for (; argc; argc--, argv++) {
        always |= !strcmp(*argv, "always=on");
        logging |= !strcmp(*argv, "log=on");
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated, 0);
    qemu_plugin_register_flush_cb(id, flushed, 0);
    qemu_add_vm_change_state_handler(state_changed, 0);
    return 0;
}
