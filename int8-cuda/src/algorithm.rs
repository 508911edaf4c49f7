//! A layer's shape, and the algorithms that compute it.

use int8_cuda_sys as sys;

/// `y [m, n] = x [m, k] · Wᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of x.
    pub m: usize,
    /// Output channels.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

/// Defines [`Algorithm`] from the rows of `int8_cuda_algorithms.h`.
macro_rules! define {
    (
        layer { $($layer:ident $kind:ident $layer_raw:path, $layer_text:literal;)* }
        product { $($product:ident $product_kind:ident $product_raw:path, $product_text:literal;)* }
    ) => {
        /// How the int8 GEMM is computed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Algorithm {
            /// Chosen by shape, from measurements.
            Auto,
            $(#[doc = $layer_text] $layer,)*
            $(#[doc = $product_text] $product,)*
        }

        impl Algorithm {
            /// All that compute the layer.
            pub const LAYER: [Self; [$(stringify!($layer)),*].len()] = [$(Self::$layer),*];

            /// Whether the prologue is in the same kernel, so that there are no [`crate::QuantizedActivations`].
            #[must_use]
            pub fn is_fused(self) -> bool {
                match self {
                    Self::Auto => false,
                    $(Self::$layer => stringify!($kind) == "FUSED",)*
                    $(Self::$product => stringify!($product_kind) == "FUSED",)*
                }
            }

            pub(crate) const fn raw(self) -> i32 {
                match self {
                    Self::Auto => sys::INT8_CUDA_AUTO,
                    $(Self::$layer => $layer_raw,)*
                    $(Self::$product => $product_raw,)*
                }
            }
        }
    };
}
sys::int8_cuda_algorithms!(define);

impl Algorithm {
    /// The algorithm of this name, in upper or lower case: one of [`Self::LAYER`], or [`Self::Auto`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut known = Self::LAYER.into_iter().chain([Self::Auto]);
        known.find(|algorithm| format!("{algorithm:?}").eq_ignore_ascii_case(name))
    }

    /// The names that [`Self::named`] knows, separated by commas.
    #[must_use]
    pub fn names() -> String {
        let known = Self::LAYER.into_iter().chain([Self::Auto]);
        known.map(|algorithm| format!("{algorithm:?}")).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn from_raw(raw: i32) -> Self {
        Self::LAYER.into_iter().find(|algorithm| algorithm.raw() == raw).unwrap_or(Self::Auto)
    }
}
