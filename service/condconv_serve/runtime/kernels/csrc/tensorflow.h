// TensorFlow's C API, as far as it is used: opaque types, and pointers to functions that are looked up at run time, so
// that building needs no TensorFlow, and the library loads without it.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_KernelBuilder TF_KernelBuilder;
typedef struct TF_OpKernelConstruction TF_OpKernelConstruction;
typedef struct TF_OpKernelContext TF_OpKernelContext;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;

enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8 };
enum { TF_FLOAT = 1, TF_UINT8 = 4, TF_BFLOAT16 = 14 };

typedef void *(*tf_create)(TF_OpKernelConstruction *construction);
typedef void (*tf_compute)(void *kernel, TF_OpKernelContext *context);
typedef void (*tf_destroy)(void *kernel);
typedef void (*tf_infer)(TF_ShapeInferenceContext *context, TF_Status *status);

// F(result, name, parameters)
#define TF_FUNCTIONS(F) \
    F(TF_Status *, TF_NewStatus, (void)) \
    F(void, TF_DeleteStatus, (TF_Status *)) \
    F(void, TF_SetStatus, (TF_Status *, int code, const char *message)) \
    F(int, TF_GetCode, (const TF_Status *)) \
    F(const char *, TF_Message, (const TF_Status *)) \
    F(void *, TF_TensorData, (const TF_Tensor *)) \
    F(int, TF_TensorType, (const TF_Tensor *)) \
    F(int, TF_NumDims, (const TF_Tensor *)) \
    F(int64_t, TF_Dim, (const TF_Tensor *, int)) \
    F(void, TF_DeleteTensor, (TF_Tensor *)) \
    F(int, TF_NumInputs, (TF_OpKernelContext *)) \
    F(int, TF_NumOutputs, (TF_OpKernelContext *)) \
    F(void, TF_GetInput, (TF_OpKernelContext *, int, TF_Tensor **, TF_Status *)) \
    F(int, TF_ExpectedOutputDataType, (TF_OpKernelContext *, int)) \
    F(TF_Tensor *, TF_AllocateOutput, \
      (TF_OpKernelContext *, int, int type, const int64_t *shape, int rank, size_t bytes, TF_Status *)) \
    F(void, TF_OpKernelContext_Failure, (TF_OpKernelContext *, TF_Status *)) \
    F(void, TF_OpKernelConstruction_Failure, (TF_OpKernelConstruction *, TF_Status *)) \
    F(void, TF_OpKernelConstruction_GetAttrInt64, (TF_OpKernelConstruction *, const char *, int64_t *, TF_Status *)) \
    F(TF_KernelBuilder *, TF_NewKernelBuilder, \
      (const char *operation, const char *device, tf_create, tf_compute, tf_destroy)) \
    F(void, TF_RegisterKernelBuilder, (const char *name, TF_KernelBuilder *, TF_Status *)) \
    F(TF_OpDefinitionBuilder *, TF_NewOpDefinitionBuilder, (const char *operation)) \
    F(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder *, const char *)) \
    F(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder *, const char *)) \
    F(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder *, const char *)) \
    F(void, TF_OpDefinitionBuilderSetShapeInferenceFunction, (TF_OpDefinitionBuilder *, tf_infer)) \
    F(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder *, TF_Status *)) \
    F(void, TF_ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext *, TF_Status *))
