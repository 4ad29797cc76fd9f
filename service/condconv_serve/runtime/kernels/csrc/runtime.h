// What the files that are compiled once share: errors, things by number, banks, programs, and the team of threads.
#pragma once
#include "kernels.h"
#include <pthread.h>

#define CC_MOST_NUMBERS ((int64_t)1 << 40) // in a bank, and bytes of a program's scratch: more is a mistake

// Keeps a message for cc_error, and returns -1.
int cc_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Things by number. A number is never given twice, so an old one finds nothing.
typedef struct cc_table {
    pthread_mutex_t lock;
    struct cc_entry *entries;
    int32_t count, free; // of entries; the first that is free, or -1
    struct cc_table *next;
} cc_table;
#define CC_TABLE { .lock = PTHREAD_MUTEX_INITIALIZER, .free = -1 }
int64_t cc_table_add(cc_table *table, void *thing);     // its number, or -1: there is no memory
void *cc_table_remove(cc_table *table, int64_t number); // the thing, or NULL
void *cc_table_keep(cc_table *table, int64_t number, void (*keep)(void *thing)); // the thing, kept, or NULL

const struct cc_isa *cc_isa_now(void);

cc_bank *cc_bank_keep(int64_t number); // NULL: there is none
void cc_bank_drop(cc_bank *bank);

typedef struct cc_program {
    atomic_int references;
    const struct cc_isa *isa;
    cc_program_spec spec;
    cc_pixels pixels;
    cc_value *values;
    cc_step *steps;
    cc_stage *stages;
    cc_bank **banks;
} cc_program;

// What a step is run on.
typedef struct cc_frame {
    const cc_program *program;
    const void *const *inputs;
    void *const *outputs;
    int64_t start;   // the chunk's first row in inputs and outputs
    int chunk;       // rows of the chunk
    int first, rows; // of the chunk, that the step computes
    char *chunk_scratch, *row_scratch;
    int alone;       // 1: other rows run at the same time, so the step shares no tasks
} cc_frame;

cc_program *cc_program_keep(int64_t number); // NULL: there is none
void cc_program_drop(cc_program *program);
const cc_value *cc_program_value(const cc_program *program, cc_place place, int number); // of an input or output
int cc_program_check_spec(const cc_program_spec *spec); // these three: 0, or -1 with the error kept
int cc_program_check(const cc_program *program);        // all of it, but for the spec by itself
int cc_program_check_flow(const cc_program *program);
int cc_step_run(const cc_frame *frame, const cc_step *step); // 0, or -1: there is no memory
int cc_program_compute(const cc_program *program, int32_t rows, const void *const *inputs, void *const *outputs);

size_t cc_type_size(int type);
const char *cc_type_name(int type);
size_t cc_value_bytes(const cc_value *value); // of one row
int64_t cc_value_count(const cc_value *value); // numbers of one row

// Threads that may compute at once: those that call, and helpers for as long as fewer call.
void cc_team_enter(void); // a call begins on this thread
void cc_team_leave(void);
int cc_team_size(void);   // threads that could share a task now: 1 or more
// Runs task(context, i) for i below `tasks`, on this thread and free helpers; -1 if one of them returned less than 0.
int cc_team_run(int (*task)(void *context, int number), void *context, int tasks);
