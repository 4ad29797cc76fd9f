// Several callers share tasks with helpers, with changing numbers of threads: each task must be done once.
#include "runtime.h"
#include <stdio.h>

enum { CALLERS = 4, CALLS = 60, REGIONS = 4, MOST_TASKS = 60 };

static int done[CALLERS][MOST_TASKS], wrong; // of a region, by caller

static int task(void *context, int number) {
    ((int *)context)[number]++;
    return number == 41 ? -1 : 0; // which fails the whole region
}

static void *caller(void *argument) {
    int *own = argument, turn = (int)(own - done[0]) / MOST_TASKS;
    for (int call = 0; call < CALLS; call++) {
        cc_team_enter();
        for (int region = 0; region < REGIONS; region++) {
            int tasks = 1 + (turn++ * 7) % MOST_TASKS, sum = 0;
            for (int i = 0; i < MOST_TASKS; i++) own[i] = 0;
            int failed = cc_team_run(task, own, tasks);
            for (int i = 0; i < tasks; i++) sum += own[i] == 1;
            if (failed != (tasks > 41 ? -1 : 0) || (!failed && sum != tasks)) wrong = 1;
        }
        cc_team_leave();
    }
    return NULL;
}

int main(void) {
    const int threads[] = {1, 2, 8, 3, 16};
    for (int round = 0; round < 5; round++) {
        pthread_t callers[CALLERS];
        cc_set_threads(threads[round]);
        for (int i = 0; i < CALLERS; i++) pthread_create(&callers[i], NULL, caller, done[i]);
        cc_set_threads(threads[round] + 1);
        for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    }
    puts(wrong ? "wrong" : "right");
    return wrong;
}
