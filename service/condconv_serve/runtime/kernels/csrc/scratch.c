// Memory: each thread's scratch, which is given back when the thread ends, and rooms in huge pages.
#define _GNU_SOURCE
#include "kernels.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

enum { LINE = 64, PAGE = 4096, HUGE_PAGE = 2 << 20 };

static void *line_aligned(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, LINE, bytes ? bytes : 1) ? NULL : memory;
}

#ifdef __SANITIZE_ADDRESS__ // sees only what is allocated to the byte
void *cc_room(size_t bytes) { return line_aligned(bytes); }
void cc_room_free(void *room, size_t bytes) {
    (void)bytes;
    free(room);
}
#else
static size_t whole(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Bytes of the mapping behind a room, or 0: it isn't worth huge pages. A last page half full becomes a huge one.
static size_t mapped(size_t bytes) {
    if (bytes < HUGE_PAGE / 2) return 0;
    return bytes % HUGE_PAGE >= HUGE_PAGE / 2 ? whole(bytes, HUGE_PAGE) : whole(bytes, PAGE);
}

void *cc_room(size_t bytes) {
    if (bytes > PTRDIFF_MAX - 2 * (size_t)HUGE_PAGE) return NULL;
    size_t size = mapped(bytes);
    if (!size) return line_aligned(bytes);
    char *all = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return NULL;
    size_t before = whole((uintptr_t)all, HUGE_PAGE) - (uintptr_t)all;
    if (before) munmap(all, before);
    if (before < HUGE_PAGE) munmap(all + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(all + before, size, MADV_HUGEPAGE); // without them it is only slower
#endif
    return all + before;
}

void cc_room_free(void *room, size_t bytes) {
    if (!room) return;
    if (mapped(bytes)) munmap(room, mapped(bytes));
    else free(room);
}
#endif

typedef struct {
    void *room;
    size_t bytes;
} piece;

static _Thread_local piece *pieces;
static pthread_key_t key;
static int has_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void give_back(void *all) {
    for (int i = 0; i < CC_SCRATCH_SLOTS; i++) cc_room_free(((piece *)all)[i].room, ((piece *)all)[i].bytes);
    free(all);
    pieces = NULL;
}

static void make_key(void) { has_key = pthread_key_create(&key, give_back) == 0; }

static piece *own_pieces(void) {
    if (pieces) return pieces;
    pthread_once(&once, make_key);
    piece *made = has_key ? calloc(CC_SCRATCH_SLOTS, sizeof *made) : NULL;
    if (made && pthread_setspecific(key, made)) {
        free(made);
        made = NULL;
    }
    return pieces = made;
}

void *cc_scratch(int slot, size_t bytes) {
    piece *own = own_pieces();
    if (!own) return NULL;
    own += slot;
    if (own->room && own->bytes >= bytes) return own->room;
    cc_room_free(own->room, own->bytes);
    own->room = cc_room(bytes);
    own->bytes = own->room ? bytes : 0;
    return own->room;
}
