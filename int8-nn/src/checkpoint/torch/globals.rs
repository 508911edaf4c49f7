//! The globals that a pickle may refer to: those that build tensors.

use super::super::DType;

/// A global of a pickle: no code, but a rule of [`Machine`](super::machine::Machine).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`: a dict.
    OrderedDict,
    /// `torch.Size`: a tuple.
    Size,
    /// `_rebuild_tensor(storage, offset, size, stride)`, and `_rebuild_tensor_v2` with further arguments for training.
    Tensor,
    /// `_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, …)`: an untyped storage.
    UntypedTensor,
    /// `_rebuild_parameter(tensor, …)`: the tensor.
    Parameter,
    /// `_rebuild_from_type_v2(rebuild, type, arguments, state)`: the tensor that `rebuild(*arguments)` gives.
    FromType,
    /// A class as an argument of the above; calling it is refused.
    Class,
    /// `torch.device`; ignored.
    Device,
    /// A storage class: the element type of the bytes it names.
    Storage(DType),
    /// `torch.storage.UntypedStorage`: bytes.
    UntypedStorage,
    /// `torch.float16` and the like, an argument of `_rebuild_tensor_v3`.
    DType(DType),
}

/// The global of this module and name, if a checkpoint of tensors may refer to it.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch", "device") => Global::Device,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => Global::Class,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Tensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::UntypedTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::Parameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::FromType,
        ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Global::UntypedStorage,
        ("torch", name) => match name.strip_suffix("Storage") {
            Some(kind) => Global::Storage(storage(kind)?),
            None => Global::DType(dtype(name)?),
        },
        _ => return None,
    })
}

/// The element type of `torch.<kind>Storage`.
fn storage(kind: &str) -> Option<DType> {
    Some(match kind {
        "Double" => DType::F64,
        "Float" => DType::F32,
        "Half" => DType::F16,
        "BFloat16" => DType::BF16,
        "Long" => DType::I64,
        "Int" => DType::I32,
        "Short" => DType::I16,
        "Char" => DType::I8,
        "Byte" => DType::U8,
        "Bool" => DType::Bool,
        "ComplexFloat" => DType::C64,
        _ => return None,
    })
}

/// The element type `torch.<name>`.
fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "float64" => DType::F64,
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "int64" => DType::I64,
        "int32" => DType::I32,
        "int16" => DType::I16,
        "int8" => DType::I8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "uint8" => DType::U8,
        "bool" => DType::Bool,
        "complex64" => DType::C64,
        "float8_e5m2" => DType::F8E5M2,
        "float8_e4m3fn" => DType::F8E4M3,
        "float8_e8m0fnu" => DType::F8E8M0,
        "float8_e4m3fnuz" => DType::F8E4M3Fnuz,
        "float8_e5m2fnuz" => DType::F8E5M2Fnuz,
        _ => return None,
    })
}
