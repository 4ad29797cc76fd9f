// A helper that is put aside in the middle of a task makes its caller wait: then nothing is shared, but not forever.
#include "runtime.h"
#include <stdio.h>
#include <time.h>

static pthread_t caller;

static void sleep_ms(int ms) {
    struct timespec t = {0, ms * 1000000L};
    nanosleep(&t, NULL);
}

static int task(void *context, int number) {
    (void)context;
    (void)number;
    sleep_ms(pthread_equal(pthread_self(), caller) ? 1 : 30);
    return 0;
}

int main(void) {
    caller = pthread_self();
    cc_set_threads(2);
    cc_team_enter();
    int regions = 0, before = cc_team_size(), after = before, later = 0;
    // Again where the caller itself was put aside, and waited less: in the region, or in the pause after it.
    while ((!cc_helped() || after != 1) && regions++ < 1000) {
        cc_team_run(task, NULL, 6);
        after = cc_team_size();
    }
    for (int ms = 0; ms < 1000 && later != 2; ms++) {
        sleep_ms(1);
        later = cc_team_size();
    }
    cc_team_leave();
    printf("%d %d %d\n", before, after, later);
    return 0;
}
