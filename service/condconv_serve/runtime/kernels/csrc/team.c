// A call's tasks, shared with helpers: threads of the library that compute only while fewer calls are active than
// threads may compute. A helper takes a task at once or not at all, so nobody waits for one that the system hasn't
// woken yet.
//
// Each active call has a place for one region of tasks at a time. Helpers look at the set of open places, first
// spinning, since a program's next region is a few microseconds away, then asleep.
#define _GNU_SOURCE
#include "runtime.h"
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

enum {
    MOST_HELPERS = 255,
    PLACES = 64,        // bits of the sets below
    WAKE_AT_ONCE = 4,   // by each thread; who wakes up wakes others
    SPIN_NS = 50000,    // before a helper sleeps
    YIELD_NS = 20000,   // before a caller that waits for a helper lets others run
    PATIENCE_NS = 100000, // and twice a task's time: who waits longer waits for a helper that the system has put aside
    AWAKE_NS = 150000,  // by then a helper has begun, if there is a core for it
    UNAIDED = 3,        // regions in a row that took longer without any help
    PAUSE_NS = 5000000, // of sharing after the one or the other; each time twice as long,
    PAUSES = 5,         // so often
    RECOVERY = 64,      // regions with help that halve the next pause
};

// Who takes a task adds 1 to `ticket`. Its lower half is the next task, the upper half how many there are, both of the
// same region whenever it is looked at; 0 and a little more between regions, so that coming late does no harm.
typedef struct {
    _Alignas(128) atomic_ullong ticket;
    _Alignas(128) atomic_int done; // tasks, added up when a thread stops
    atomic_int failed;
    _Alignas(128) int (*task)(void *, int); // changes only between regions, and so does the context
    void *context;
} region;

typedef struct {
    _Alignas(128) atomic_int asleep;
    int alive;               // under the team's lock
    atomic_llong tasks;      // that it did
    pthread_mutex_t lock;
    pthread_cond_t wake;
} helper;

static region regions[PLACES];
static helper helpers[MOST_HELPERS];
static _Alignas(128) atomic_ullong taken, open; // sets of places: those that a call has, and those with tasks left
static _Alignas(128) atomic_int limit = 1;      // threads that may compute
static atomic_int active;                       // calls
static _Alignas(128) atomic_int sleeping;       // helpers
static atomic_llong paused_until;               // nothing is shared before
static atomic_int setbacks, unaided, aided;     // how long the next pause is; regions without help, and with it
static atomic_int made;                         // helpers: all those before this number are there
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static _Thread_local int depth;      // calls of this thread, one within the other
static _Thread_local int place = -1; // of this thread's regions, while its call lasts
static _Thread_local int busy;       // a task of this thread runs: it shares no tasks of its own

static inline void relax(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("isb" ::: "memory");
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Helpers that may compute now: those with lower numbers.
static inline int wanted_helpers(void) {
    return atomic_load_explicit(&limit, memory_order_relaxed) - atomic_load_explicit(&active, memory_order_relaxed);
}

static inline int unwanted(int number) { return number >= wanted_helpers(); }

static inline unsigned tasks_left(unsigned long long ticket) {
    unsigned tasks = (unsigned)(ticket >> 32), next = (unsigned)ticket;
    return next < tasks ? tasks - next : 0;
}

// Does tasks of a region until there are none, or until this helper is unwanted, and says how many; callers are
// number -1.
static int work(region *r, int number) {
    int did = 0;
    for (;;) {
        unsigned long long ticket = atomic_fetch_add_explicit(&r->ticket, 1, memory_order_acquire);
        if (!tasks_left(ticket)) break;
        if (!atomic_load_explicit(&r->failed, memory_order_relaxed) && r->task(r->context, (int)(unsigned)ticket) < 0)
            atomic_store_explicit(&r->failed, 1, memory_order_relaxed);
        did++;
        if (number >= 0 && unwanted(number)) break;
    }
    if (!did) return 0;
    if (number >= 0) atomic_fetch_add_explicit(&helpers[number].tasks, did, memory_order_relaxed);
    atomic_fetch_add_explicit(&r->done, did, memory_order_release);
    return did;
}

// Wakes sleeping helpers below `count`, but not too many: that takes some microseconds each.
static void wake_some(int count) {
    for (int i = 0, woken = 0; i < count && woken < WAKE_AT_ONCE; i++) {
        if (!atomic_load(&sleeping)) return;
        helper *h = &helpers[i];
        if (!atomic_load_explicit(&h->asleep, memory_order_relaxed)) continue;
        pthread_mutex_lock(&h->lock);
        if (atomic_exchange(&h->asleep, 0)) {
            atomic_fetch_sub(&sleeping, 1);
            pthread_cond_signal(&h->wake);
            woken++;
        }
        pthread_mutex_unlock(&h->lock);
    }
}

// Of the wanted helpers, as many as there are tasks left.
static int useful_helpers(void) {
    int wanted = wanted_helpers(), useful = 0;
    unsigned long long places = atomic_load(&open);
    for (; places && useful < wanted; places &= places - 1) {
        region *r = &regions[__builtin_ctzll(places)];
        unsigned left = tasks_left(atomic_load_explicit(&r->ticket, memory_order_relaxed));
        useful = left < (unsigned)(wanted - useful) ? useful + (int)left : wanted;
    }
    return useful;
}

// Whether there are fewer threads now than this helper needs.
static int surplus(int number) { return number >= atomic_load_explicit(&limit, memory_order_relaxed) - 1; }

// Until there are tasks, or this helper is one too many.
static void sleep_until_woken(int number) {
    helper *me = &helpers[number];
    pthread_mutex_lock(&me->lock);
    atomic_store(&me->asleep, 1);
    atomic_fetch_add(&sleeping, 1);
    // Who opens a region looks at `sleeping` after that, so one of both sees the other.
    if (number < useful_helpers() || surplus(number)) {
        atomic_store(&me->asleep, 0);
        atomic_fetch_sub(&sleeping, 1);
    }
    int slept = atomic_load(&me->asleep);
    while (atomic_load(&me->asleep)) pthread_cond_wait(&me->wake, &me->lock);
    pthread_mutex_unlock(&me->lock);
    if (slept) wake_some(useful_helpers());
}

// Helps wherever there are tasks; whether there were any.
static int help(int number) {
    unsigned long long places = atomic_load_explicit(&open, memory_order_acquire);
    int helped = 0;
    while (places && !unwanted(number)) {
        // Each begins at another place, so that several regions get helpers.
        int first = number % PLACES;
        unsigned long long later = places >> first << first;
        int i = __builtin_ctzll(later ? later : places);
        places &= ~(1ull << i);
        region *r = &regions[i];
        if (!tasks_left(atomic_load_explicit(&r->ticket, memory_order_relaxed))) continue;
        work(r, number);
        helped = 1;
    }
    return helped;
}

// Whether the helper is gone: under the lock, since it may be wanted again.
static int leave_if_surplus(int number) {
    if (!surplus(number)) return 0;
    pthread_mutex_lock(&lock);
    int gone = surplus(number);
    if (gone) helpers[number].alive = 0;
    pthread_mutex_unlock(&lock);
    return gone;
}

static void *run_helper(void *own) {
    int number = (int)((helper *)own - helpers);
    while (!leave_if_surplus(number)) {
        int64_t until = now_ns() + SPIN_NS;
        // Where it is unwanted, a core is missing already.
        for (int turn = 1; !unwanted(number) && (turn % 16 || now_ns() < until); turn++) {
            if (help(number)) until = now_ns() + SPIN_NS;
            relax();
        }
        sleep_until_woken(number);
    }
    return NULL;
}

// Signals are for the program's own threads.
static int start(int number) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    helper *h = &helpers[number];
    if (pthread_attr_init(&attributes)) return -1;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, &attributes, run_helper, h);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (failed) return -1;
#ifdef __linux__
    pthread_setname_np(thread, "condconv");
#endif
    return 0;
}

// Sees to it that there are helpers below `count`, as far as the system gives threads.
static void make_helpers(int count) {
    if (atomic_load_explicit(&made, memory_order_acquire) >= count) return;
    pthread_mutex_lock(&lock);
    int most = atomic_load(&limit) - 1;
    if (count > most) count = most;
    for (int i = atomic_load(&made); i < count; i++) {
        if (!helpers[i].alive && start(i)) {
            atomic_store(&limit, i + 1); // ask for no more until the number of threads is set again
            break;
        }
        helpers[i].alive = 1;
        atomic_store_explicit(&made, i + 1, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
}

static void before_fork(void) { pthread_mutex_lock(&lock); }

static void after_fork(void) { pthread_mutex_unlock(&lock); }

// The child has one thread and none of the helpers; it computes alone until it sets a number of threads itself.
static void in_child(void) {
    for (int i = 0; i < MOST_HELPERS; i++) {
        helpers[i].alive = 0;
        atomic_store(&helpers[i].asleep, 0);
        pthread_mutex_init(&helpers[i].lock, NULL);
        pthread_cond_init(&helpers[i].wake, NULL);
    }
    for (int i = 0; i < PLACES; i++) atomic_store(&regions[i].ticket, 0);
    atomic_store(&limit, 1);
    atomic_store(&made, 0);
    atomic_store(&sleeping, 0);
    atomic_store(&active, depth > 0);
    atomic_store(&open, 0);
    atomic_store(&taken, 0);
    atomic_store(&paused_until, 0);
    place = -1;
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void prepare(void) {
    for (int i = 0; i < MOST_HELPERS; i++) {
        pthread_mutex_init(&helpers[i].lock, NULL);
        pthread_cond_init(&helpers[i].wake, NULL);
    }
    pthread_atfork(before_fork, after_fork, in_child);
}

void cc_set_threads(int32_t threads) {
    if (threads < 1) threads = 1;
    if (threads > MOST_HELPERS + 1) threads = MOST_HELPERS + 1;
    pthread_mutex_lock(&lock);
    atomic_store(&limit, threads);
    if (atomic_load(&made) > threads - 1) atomic_store(&made, threads - 1);
    pthread_mutex_unlock(&lock);
    for (int i = threads - 1; i < MOST_HELPERS; i++) { // those too many wake up and end
        pthread_mutex_lock(&helpers[i].lock);
        if (atomic_exchange(&helpers[i].asleep, 0)) {
            atomic_fetch_sub(&sleeping, 1);
            pthread_cond_signal(&helpers[i].wake);
        }
        pthread_mutex_unlock(&helpers[i].lock);
    }
}

int64_t cc_helped(void) {
    int64_t sum = 0;
    for (int i = 0; i < MOST_HELPERS; i++) sum += atomic_load_explicit(&helpers[i].tasks, memory_order_relaxed);
    return sum;
}

void cc_team_enter(void) {
    if (depth++ == 0) atomic_fetch_add(&active, 1);
}

void cc_team_leave(void) {
    if (--depth) return;
    atomic_fetch_sub(&active, 1);
    if (place < 0) return;
    atomic_fetch_and(&taken, ~(1ull << place));
    place = -1;
}

// Where other programs want the cores, too, helpers come late or not at all and only take time from their caller, or
// are put aside in the middle of a task, and their caller waits for milliseconds. Then there are none for a while.
static int is_paused(void) {
    int64_t until = atomic_load_explicit(&paused_until, memory_order_relaxed);
    return until && now_ns() < until;
}

static void pause_sharing(void) {
    int times = atomic_load(&setbacks);
    atomic_store(&unaided, 0);
    atomic_store(&aided, 0);
    atomic_store(&setbacks, times < PAUSES ? times + 1 : PAUSES);
    atomic_store(&paused_until, now_ns() + ((int64_t)PAUSE_NS << times));
}

static void judge(int helped, int64_t took, int64_t waited, int64_t patience) {
    if (waited > patience || (!helped && took > AWAKE_NS && atomic_fetch_add(&unaided, 1) + 1 >= UNAIDED)) {
        pause_sharing();
    } else if (helped) {
        atomic_store_explicit(&unaided, 0, memory_order_relaxed);
        int times = atomic_load_explicit(&setbacks, memory_order_relaxed);
        if (!times || atomic_fetch_add(&aided, 1) < RECOVERY) return;
        atomic_store(&aided, 0);
        atomic_compare_exchange_strong(&setbacks, &times, times - 1);
    }
}

int cc_team_size(void) {
    int count = wanted_helpers();
    return count > 0 && !is_paused() ? 1 + count : 1;
}

// This thread's place, for as long as its call lasts; -1: all are taken.
static int own_place(void) {
    unsigned long long now = atomic_load(&taken);
    while (place < 0 && ~now) {
        int free = __builtin_ctzll(~now);
        if (atomic_compare_exchange_weak(&taken, &now, now | 1ull << free)) place = free;
    }
    return place;
}

static int run_alone(int (*task)(void *, int), void *context, int tasks) {
    for (int i = 0; i < tasks; i++)
        if (task(context, i) < 0) return -1;
    return 0;
}

// Returns how long it took.
static int64_t wait_for_helpers(region *r, int tasks) {
    if (atomic_load_explicit(&r->done, memory_order_acquire) >= tasks) return 0;
    const int64_t begin = now_ns();
    int64_t now = begin;
    for (int turn = 1; atomic_load_explicit(&r->done, memory_order_acquire) < tasks; turn++) {
        relax();
        if (turn % 16) continue;
        now = now_ns();
        if (now - begin > YIELD_NS) sched_yield();
    }
    return now - begin;
}

int cc_team_run(int (*task)(void *context, int number), void *context, int tasks) {
    int count = cc_team_size() - 1;
    if (count > tasks - 1) count = tasks - 1;
    if (count < 1 || busy || !depth || own_place() < 0) return run_alone(task, context, tasks);
    region *r = &regions[place];
    r->task = task;
    r->context = context;
    atomic_store_explicit(&r->done, 0, memory_order_relaxed);
    atomic_store_explicit(&r->failed, 0, memory_order_relaxed);
    atomic_store_explicit(&r->ticket, (unsigned long long)tasks << 32, memory_order_release);
    atomic_fetch_or(&open, 1ull << place);
    make_helpers(count);
    wake_some(count);
    busy = 1;
    const int64_t begin = now_ns();
    const int did = work(r, -1);
    busy = 0;
    atomic_fetch_and(&open, ~(1ull << place));
    const int64_t took = now_ns() - begin;
    judge(did < tasks, took, wait_for_helpers(r, tasks), PATIENCE_NS + 2 * took / (did ? did : 1));
    atomic_store_explicit(&r->ticket, 0, memory_order_relaxed);
    return atomic_load_explicit(&r->failed, memory_order_relaxed) ? -1 : 0;
}
