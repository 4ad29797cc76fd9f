// The last failure's message, for each thread its own.
#include "runtime.h"
#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[320];

int cc_fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return -1;
}

const char *cc_error(void) { return message; }
