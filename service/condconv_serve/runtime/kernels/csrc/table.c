// Things by number: banks and programs, which Python and TensorFlow's graphs name by numbers.
#include "runtime.h"
#include <stdlib.h>

// A number is an entry's place, and how often the entry has been used.
struct cc_entry {
    void *thing;
    int32_t uses, next_free;
};

enum { GROWTH = 256 };

// After a fork, a lock may be held by a thread that the child doesn't have. So forks wait for the locks.
static cc_table *tables;
static pthread_mutex_t tables_lock = PTHREAD_MUTEX_INITIALIZER;

static void lock_all(void) {
    pthread_mutex_lock(&tables_lock);
    for (cc_table *table = tables; table; table = table->next) pthread_mutex_lock(&table->lock);
}

static void unlock_all(void) {
    for (cc_table *table = tables; table; table = table->next) pthread_mutex_unlock(&table->lock);
    pthread_mutex_unlock(&tables_lock);
}

// Called without the table's lock: a fork takes that of the list first.
static void remember(cc_table *table) {
    pthread_mutex_lock(&tables_lock);
    cc_table *known = tables;
    while (known && known != table) known = known->next;
    if (!known) {
        if (!tables) pthread_atfork(lock_all, unlock_all, unlock_all);
        table->next = tables;
        tables = table;
    }
    pthread_mutex_unlock(&tables_lock);
}

static int grow(cc_table *table) {
    if (table->count > INT32_MAX - GROWTH) return -1;
    struct cc_entry *entries = realloc(table->entries, (size_t)(table->count + GROWTH) * sizeof *entries);
    if (!entries) return -1;
    table->entries = entries;
    for (int i = 0; i < GROWTH; i++) {
        entries[table->count] = (struct cc_entry){.next_free = table->free};
        table->free = table->count++;
    }
    return 0;
}

int64_t cc_table_add(cc_table *table, void *thing) {
    int64_t number = -1;
    remember(table);
    pthread_mutex_lock(&table->lock);
    if (table->free >= 0 || grow(table) == 0) {
        int32_t place = table->free;
        struct cc_entry *entry = &table->entries[place];
        table->free = entry->next_free;
        entry->thing = thing;
        entry->uses = entry->uses == INT32_MAX ? 1 : entry->uses + 1;
        number = (int64_t)entry->uses << 32 | place;
    }
    pthread_mutex_unlock(&table->lock);
    return number;
}

static struct cc_entry *find(const cc_table *table, int64_t number) {
    int32_t place = (int32_t)(number & INT32_MAX), uses = (int32_t)(number >> 32);
    if (number < 0 || (number & 0x80000000) || place >= table->count) return NULL;
    struct cc_entry *entry = &table->entries[place];
    return entry->thing && entry->uses == uses ? entry : NULL;
}

void *cc_table_remove(cc_table *table, int64_t number) {
    void *thing = NULL;
    pthread_mutex_lock(&table->lock);
    struct cc_entry *entry = find(table, number);
    if (entry) {
        thing = entry->thing;
        entry->thing = NULL;
        entry->next_free = table->free;
        table->free = (int32_t)(entry - table->entries);
    }
    pthread_mutex_unlock(&table->lock);
    return thing;
}

void *cc_table_keep(cc_table *table, int64_t number, void (*keep)(void *thing)) {
    void *thing = NULL;
    pthread_mutex_lock(&table->lock);
    struct cc_entry *entry = find(table, number);
    if (entry) keep(thing = entry->thing);
    pthread_mutex_unlock(&table->lock);
    return thing;
}
