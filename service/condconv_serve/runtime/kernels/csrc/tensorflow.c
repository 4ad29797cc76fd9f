// TensorFlow's operation CondconvProgram, by TensorFlow's C API alone: it checks its inputs against a program's values,
// then runs the program on the thread that TensorFlow calls it on.
#define _GNU_SOURCE
#include "tensorflow.h"
#include "runtime.h"
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef __APPLE__
#define FRAMEWORK "libtensorflow_framework.2.dylib"
#else
#define FRAMEWORK "libtensorflow_framework.so.2"
#endif

#define DECLARE(result, name, parameters) result(*name) parameters;
static struct {
    TF_FUNCTIONS(DECLARE)
} tf;

static atomic_int registered;

static int tf_type(int type) { return type == CC_UINT8 ? TF_UINT8 : type == CC_FLOAT32 ? TF_FLOAT : TF_BFLOAT16; }

static void describe(char *to, size_t room, const char *type, int rank, const int64_t *shape) {
    size_t used = (size_t)snprintf(to, room, "%s [", type);
    for (int i = 0; i < rank && used < room; i++) {
        const char *comma = i ? ", " : "";
        used += (size_t)(shape[i] < 0 ? snprintf(to + used, room - used, "%sbatch", comma)
                                      : snprintf(to + used, room - used, "%s%lld", comma, (long long)shape[i]));
    }
    if (used < room) snprintf(to + used, room - used, "]");
}

// Says what an input or output is and what is wanted; rows -1: as many as you like.
static void mismatch(TF_Status *status, const char *which, int number, const char *found, const cc_value *v,
                     int64_t rows) {
    char wanted[160], message[480];
    int64_t shape[4] = {rows};
    for (int i = 0; i < v->rank; i++) shape[i + 1] = v->shape[i];
    describe(wanted, sizeof wanted, cc_type_name(v->type), v->rank + 1, shape);
    snprintf(message, sizeof message, "CondconvProgram: %s %d is %s, and %s is needed.", which, number, found, wanted);
    tf.TF_SetStatus(status, TF_INVALID_ARGUMENT, message);
}

// Of one call.
typedef struct {
    const cc_program *program;
    TF_OpKernelContext *context;
    TF_Status *status;
    TF_Tensor **inputs, **outputs;
    int64_t rows; // -1: not known yet
} call;

static int failed(const call *c) { return tf.TF_GetCode(c->status) != TF_OK; }

static void check_input(call *c, int number) {
    const TF_Tensor *x = c->inputs[number];
    const cc_value *v = cc_program_value(c->program, CC_INPUT, number);
    int type = tf.TF_TensorType(x), rank = tf.TF_NumDims(x), fits = type == tf_type(v->type) && rank == v->rank + 1;
    for (int i = 0; i < v->rank && fits; i++) fits = tf.TF_Dim(x, i + 1) == v->shape[i];
    if (fits && c->rows < 0) c->rows = tf.TF_Dim(x, 0);
    if (fits && tf.TF_Dim(x, 0) == c->rows && c->rows <= INT_MAX) return;
    char found[160], name[24];
    int64_t shape[8] = {0};
    for (int i = 0; i < rank && i < 8; i++) shape[i] = tf.TF_Dim(x, i);
    snprintf(name, sizeof name, "type %d", type);
    for (int known = CC_UINT8; known <= CC_BFLOAT16; known++)
        if (tf_type(known) == type) snprintf(name, sizeof name, "%s", cc_type_name(known));
    describe(found, sizeof found, name, rank < 8 ? rank : 8, shape);
    mismatch(c->status, "input", number, found, v, c->rows <= INT_MAX ? c->rows : -1);
}

static void read_inputs(call *c) {
    const cc_program_spec *spec = &c->program->spec;
    int inputs = tf.TF_NumInputs(c->context), outputs = tf.TF_NumOutputs(c->context);
    if (inputs != spec->inputs || outputs != spec->outputs) {
        char message[200];
        snprintf(message, sizeof message,
                 "CondconvProgram has %d inputs and %d outputs, and its program has %d inputs and %d outputs.", inputs,
                 outputs, spec->inputs, spec->outputs);
        tf.TF_SetStatus(c->status, TF_INVALID_ARGUMENT, message);
        return;
    }
    for (int i = 0; i < inputs && !failed(c); i++) {
        tf.TF_GetInput(c->context, i, &c->inputs[i], c->status);
        if (!failed(c)) check_input(c, i);
    }
}

static void allocate_outputs(call *c) {
    for (int i = 0; i < c->program->spec.outputs && !failed(c); i++) {
        const cc_value *v = cc_program_value(c->program, CC_OUTPUT, i);
        int64_t shape[4] = {c->rows};
        for (int d = 0; d < v->rank; d++) shape[d + 1] = v->shape[d];
        if (tf.TF_ExpectedOutputDataType(c->context, i) != tf_type(v->type))
            mismatch(c->status, "output", i, "of another type", v, -1);
        else
            c->outputs[i] = tf.TF_AllocateOutput(c->context, i, tf_type(v->type), shape, v->rank + 1,
                                                 (size_t)c->rows * cc_value_bytes(v), c->status);
    }
}

static void run(call *c, const void **inputs, void **outputs) {
    for (int i = 0; i < c->program->spec.inputs; i++) inputs[i] = tf.TF_TensorData(c->inputs[i]);
    for (int i = 0; i < c->program->spec.outputs; i++) outputs[i] = tf.TF_TensorData(c->outputs[i]);
    if (cc_program_compute(c->program, (int32_t)c->rows, inputs, outputs))
        tf.TF_SetStatus(c->status, TF_RESOURCE_EXHAUSTED, cc_error());
}

static void compute(void *kernel, TF_OpKernelContext *context) {
    const cc_program *program = kernel;
    const size_t tensors = (size_t)program->spec.inputs + (size_t)program->spec.outputs;
    call c = {program, context, tf.TF_NewStatus(), calloc(2 * tensors, sizeof(void *)), NULL, -1};
    if (c.inputs) {
        void **pointers = (void **)(c.inputs + tensors);
        c.outputs = c.inputs + program->spec.inputs;
        read_inputs(&c);
        if (!failed(&c)) allocate_outputs(&c);
        if (!failed(&c) && c.rows > 0) run(&c, (const void **)pointers, pointers + program->spec.inputs);
        for (size_t i = 0; i < tensors; i++)
            if (c.inputs[i]) tf.TF_DeleteTensor(c.inputs[i]);
        free(c.inputs);
    } else tf.TF_SetStatus(c.status, TF_RESOURCE_EXHAUSTED, "There is no memory to compute anything.");
    if (failed(&c)) tf.TF_OpKernelContext_Failure(context, c.status);
    tf.TF_DeleteStatus(c.status);
}

// The kernel is the program, which it keeps.
static void *create(TF_OpKernelConstruction *construction) {
    TF_Status *status = tf.TF_NewStatus();
    int64_t number = -1;
    cc_program *program = NULL;
    tf.TF_OpKernelConstruction_GetAttrInt64(construction, "program", &number, status);
    if (tf.TF_GetCode(status) == TF_OK && !(program = cc_program_keep(number)))
        tf.TF_SetStatus(status, TF_INVALID_ARGUMENT,
                        "CondconvProgram: there is no such program in this process, or it was freed.");
    if (tf.TF_GetCode(status) != TF_OK) tf.TF_OpKernelConstruction_Failure(construction, status);
    tf.TF_DeleteStatus(status);
    return program;
}

static void destroy(void *kernel) { cc_program_drop(kernel); }

// Whoever builds a graph knows the program, and sets the shapes.
static void infer(TF_ShapeInferenceContext *context, TF_Status *status) {
    tf.TF_ShapeInferenceContextSetUnknownShape(context, status);
}

static int find_functions(void) {
    void *framework = dlopen(FRAMEWORK, RTLD_NOW | RTLD_NOLOAD);
    if (!framework) return cc_fail("TensorFlow isn't loaded: there is no %s in this process", FRAMEWORK);
#define FIND(result, name, parameters) \
    if (!(*(void **)&tf.name = dlsym(framework, #name))) return cc_fail("this TensorFlow has no %s", #name);
    TF_FUNCTIONS(FIND)
    return 0;
}

static int register_operation(void) {
    TF_Status *status = tf.TF_NewStatus();
    TF_OpDefinitionBuilder *definition = tf.TF_NewOpDefinitionBuilder("CondconvProgram");
    tf.TF_OpDefinitionBuilderAddAttr(definition, "program: int");
    tf.TF_OpDefinitionBuilderAddAttr(definition, "Tin: list(type) >= 1");
    tf.TF_OpDefinitionBuilderAddAttr(definition, "Tout: list(type) >= 1");
    tf.TF_OpDefinitionBuilderAddInput(definition, "rows: Tin");
    tf.TF_OpDefinitionBuilderAddOutput(definition, "values: Tout");
    tf.TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, infer);
    tf.TF_RegisterOpDefinition(definition, status);
    if (tf.TF_GetCode(status) == TF_OK)
        tf.TF_RegisterKernelBuilder("CondconvProgram",
                                    tf.TF_NewKernelBuilder("CondconvProgram", "CPU", create, compute, destroy), status);
    int refused = tf.TF_GetCode(status) != TF_OK;
    if (refused) cc_fail("TensorFlow refuses the operation: %s", tf.TF_Message(status));
    tf.TF_DeleteStatus(status);
    return refused;
}

int32_t cc_register(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    int done = atomic_load(&registered) ? 0 : find_functions() || register_operation() ? -1 : 0;
    if (done == 0) atomic_store(&registered, 1);
    pthread_mutex_unlock(&lock);
    return done;
}

int32_t cc_registered(void) { return atomic_load(&registered); }
