// The library's interface. Python mirrors the structs and numbers below in abi.py; CC_VERSION says which of them.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define CC_API __attribute__((visibility("default")))
#define CC_VERSION 2

typedef enum { CC_UINT8 = 0, CC_FLOAT32 = 1, CC_BFLOAT16 = 2 } cc_type;

typedef enum {
    CC_LINEAR = 0,
    CC_RELU = 1,
    CC_RELU6 = 2,
    CC_SWISH = 3,
    CC_HARD_SWISH = 4,
    CC_SIGMOID = 5,
    CC_HARD_SIGMOID = 6,
    CC_ACTIVATIONS = 7,
} cc_activation;

// How a bank holds its numbers: half floats only where that loses nothing, and only mixed banks.
typedef enum { CC_BANK_FLOAT32 = 0, CC_BANK_FLOAT16 = 1, CC_BANK_BFLOAT16 = 2 } cc_bank_type;

// A convolution's weights, as they are given. A dense layer is a convolution with a kernel of 1 x 1.
typedef struct {
    int32_t depthwise;           // 1: one kernel per channel, and in_channels == out_channels
    int32_t num_experts;         // at least 1
    int32_t mixed;               // 1: one kernel per example, the sum of the experts by its routing weights
    int32_t type;                // cc_bank_type; depthwise convolutions are float32
    int32_t in_channels, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_height, stride_width;
    int32_t dilation_height, dilation_width;
} cc_bank_spec;

typedef enum {
    CC_STEP_CONV = 0,       // activation(kernel * (input times scale) times factor + bias + residual)
    CC_STEP_DEPTHWISE = 1,  // the same with a depthwise kernel, of what a CONV (the producer) yields if there is one
    CC_STEP_POOL = 2,       // mean over height and width
    CC_STEP_SCALE = 3,      // input times scale, by channel
    CC_STEP_ADD = 4,        // activation(input + residual)
    CC_STEP_ACTIVATE = 5,   // activation(input)
    CC_STEP_CONVERT = 6,    // float32 to bfloat16, or back
    CC_STEP_MULTIPLY = 7,   // input times residual, number by number
    CC_STEP_MAX_POOL = 8,   // largest number of each window, by channel; what lies beyond the image doesn't count
    CC_STEPS = 9,
} cc_step_kind;

// What happens to a program's values. Numbers of values and banks are places in the program's lists; -1: none.
typedef struct {
    int32_t kind;                          // cc_step_kind
    int32_t input, output;                 // values
    int32_t routing, scale, residual;      // values: [num_experts], [channels], like output
    int32_t pooled;                        // value [channels], float32: the output's mean over height and width
    int32_t bank, producer;                // banks
    int32_t activation, producer_activation;
    int32_t normalise;                     // 1: the input are pixels; (pixel - mean) times scale comes before all else
    int32_t height, width, channels;       // of the input
    int32_t pad_top, pad_left;             // of the bank's convolution; what lies beyond the image is zero
    int32_t window_height, window_width, window_stride_height, window_stride_width; // of a MAX_POOL; else 0
    int32_t out_height, out_width;
    int32_t producer_pad_top, producer_pad_left, producer_height, producer_width; // of the producer and its output
} cc_step;

typedef enum { CC_SCRATCH = 0, CC_INPUT = 1, CC_OUTPUT = 2 } cc_place;

// One row of a tensor of the program.
typedef struct {
    int32_t place;        // cc_place
    int32_t number;       // of the input or the output
    int32_t type;         // cc_type
    int32_t rank;         // without the batch: 1 or 3
    int32_t shape[3];
    int32_t row_by_row;   // scratch of one row, since all its steps are of one stage that runs row by row
    int64_t offset;       // scratch: bytes from the start of its part, those of a chunk times the rows of the chunk
} cc_value;

// Steps first to last - 1, which run one row after the other, or all rows of a chunk together.
typedef struct {
    int32_t first, last, row_by_row;
} cc_stage;

typedef struct {
    int32_t version, size_of_step, size_of_value;    // checked first
    int32_t values, steps, stages, banks, inputs, outputs;
    int32_t chunk;                                    // rows that are computed together at most
    int64_t row_bytes, chunk_bytes;                   // of scratch: once for values of one row, and per row of a chunk
    float mean[4], scale[4];                          // of pixels, by channel
} cc_program_spec;

// All functions that return a number of a bank or a program return -1 where they fail; cc_error says why.
CC_API int32_t cc_version(void);
CC_API int32_t cc_struct_size(int32_t number); // of bank_spec, step, value, stage, program_spec; else 0
CC_API const char *cc_error(void);          // of this thread's last failure
CC_API const char *cc_isa(void);            // of new banks and programs: at first the best that this CPU has
CC_API const char *cc_isas(void);           // all that this CPU has, the best first, with commas
CC_API int32_t cc_set_isa(const char *name); // -1: this CPU has none of that name
CC_API int32_t cc_has_bfloat16(void);
// Makes TensorFlow, which must be loaded, know the operation CondconvProgram. Again: nothing happens.
CC_API int32_t cc_register(void);
CC_API int32_t cc_registered(void);         // whether it does
CC_API void cc_set_threads(int32_t threads); // that may compute at once, all calls together; 1 at first
CC_API void cc_set_least_work(int64_t multiply_adds); // that are worth a task for another thread
CC_API int64_t cc_helped(void);              // tasks of calls that other threads than theirs have done

// experts [num_experts, kernel_height, kernel_width, in_channels, out_channels], or without in_channels if depthwise;
// factor and bias [out_channels], NULL: 1 and 0; expert_bias [num_experts, out_channels] or NULL: before factor.
CC_API int64_t cc_bank_new(const cc_bank_spec *spec, const float *experts, const float *factor, const float *bias,
                           const float *expert_bias);
CC_API void cc_bank_release(int64_t bank);   // programs that use it keep it
CC_API int64_t cc_bank_bytes(int64_t bank);
CC_API int64_t cc_banks_alive(void);

CC_API int64_t cc_program_new(const cc_program_spec *spec, const cc_value *values, const cc_step *steps,
                              const cc_stage *stages, const int64_t *banks);
CC_API void cc_program_release(int64_t program); // operations of TensorFlow that use it keep it
CC_API int64_t cc_programs_alive(void);
// rows of each input, one after the other, densely packed; returns 0, or -1 where there is no such program.
CC_API int32_t cc_program_run(int64_t program, int32_t rows, const void *const *inputs, void *const *outputs);
