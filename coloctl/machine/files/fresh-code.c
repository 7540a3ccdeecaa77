/*
 * A plugin for QEMU's TCG that keeps the code of a COLO secondary fresh.
 *
 * TCG translates guest code and keeps the result. A checkpoint overwrites the secondary's memory
 * behind TCG's back, and since 10.2 QEMU keeps the translations that were made before. A page that
 * holds other code now would run as the old one (docs/qemu.md, "Stale translations").
 *
 * This plugin notes the host page of every translated block with a checksum of the page. When the
 * virtual machine starts again, as it does behind every checkpoint, it has QEMU drop what was
 * translated from a page whose checksum is another one now.
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
extern _Bool migration_in_colo_state(void);

#define EXPORT __attribute__((visibility("default")))
#define PAGE 4096UL /* of an x86 guest */
#define NO_RAM (~0UL)

EXPORT int qemu_plugin_version = 7;

/* What was translated: a hash table with open addressing, never more than half full. */
struct note {
    u8 *from; /* a page; with `crossing` the instruction that crosses the end of one */
    u64 sum;  /* of the page as it was when it was last translated from */
    u8 crossing;
    u8 live; /* something may be translated from it now */
};
static struct note *notes;
static u64 room, used;
static int logging;

/* Of glibc: all zero is an unlocked mutex. Held by vCPUs that translate at the same time. */
static u64 mutex[16];

/* A change of one word always changes the sum: each step is a bijection of the lane it falls in. */
static u64 checksum(const u8 *page)
{
    const u64 *word = (const u64 *)page, *end = (const u64 *)(page + PAGE);
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

static void remember(u8 *from, int crossing)
{
    struct note *note;

    if (used * 2 >= room)
        grow();
    note = find(notes, room, from);
    used += !note->from;
    note->from = from;
    note->crossing = crossing;
    note->live = 1;
    if (!crossing)
        note->sum = checksum(from);
}

/* Called by a vCPU that has just translated a block, with the guest's page as it translated it. */
static void translated(struct qemu_plugin_tb *tb, void *data)
{
    u64 count = qemu_plugin_tb_n_insns(tb);
    struct qemu_plugin_insn *end;
    u8 *first, *last;

    if (!count)
        return;
    end = qemu_plugin_tb_get_insn(tb, count - 1);
    first = qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
    last = qemu_plugin_insn_haddr(end);
    pthread_mutex_lock(mutex);
    /* Code that lies in no RAM is translated anew each time by QEMU itself. */
    if (first)
        remember((u8 *)((u64)first & ~(PAGE - 1)), 0);
    if (last && ((u64)first ^ (u64)last) >= PAGE)
        remember((u8 *)((u64)last & ~(PAGE - 1)), 0);
    /* Where the rest of a last instruction lies is not told: such a block is always dropped. */
    if (last && ((u64)last & (PAGE - 1)) + qemu_plugin_insn_size(end) > PAGE)
        remember(last, 1);
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

/* Called before the vCPUs run again, and when they have stopped; none translates meanwhile. */
static void state_changed(void *data, _Bool running, int state)
{
    u64 i, ram, pages = 0, stale = 0, crossing = 0;
    struct note *note;

    /* A primary in COLO runs what it ran before: nothing else writes its memory. */
    if (!running || migration_in_colo_state())
        return;
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
        } else if (pages++, checksum(note->from) != note->sum) {
            tb_invalidate_phys_range(0, ram, ram | (PAGE - 1));
            note->live = 0;
            stale++;
        }
    }
    if (logging)
        dprintf(2, "fresh-code: pages=%lu stale=%lu crossing=%lu\n", pages, stale, crossing);
}

EXPORT int qemu_plugin_install(u64 id, const struct info *info, int argc, char **argv)
{
    if (!info->system_emulation || strcmp(info->target_name, "x86_64"))
        return 1;
    logging = argc && !strcmp(argv[0], "log=on");
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated, 0);
    qemu_plugin_register_flush_cb(id, flushed, 0);
    qemu_add_vm_change_state_handler(state_changed, 0);
    return 0;
}
