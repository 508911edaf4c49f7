//! The error of this crate.

/// A caller's mistake, with the operands' shapes in the message.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The two operands do not share their inner dimension K.
    #[error(
        "{operation}: inner dimensions differ: x is [{rows}, {x_inner}], W is [{outputs}, {w_inner}] (W is stored [N, K])"
    )]
    InnerDimension {
        /// The operation that was called.
        operation: &'static str,
        /// Rows of `x`.
        rows: usize,
        /// Columns of `x`.
        x_inner: usize,
        /// Rows of `W`.
        outputs: usize,
        /// Columns of `W`.
        w_inner: usize,
    },
    /// A vector's length does not match the matrices.
    #[error("{what}: expected {expected} elements, found {found}")]
    Length {
        /// Which vector.
        what: &'static str,
        /// Length required.
        expected: usize,
        /// Length given.
        found: usize,
    },
    /// A matrix's shape is not the required one.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which matrix.
        what: &'static str,
        /// Shape required.
        expected: (usize, usize),
        /// Shape given.
        found: (usize, usize),
    },
    /// An index of a column of `W` is out of range.
    #[error("column {column} is out of range: W has {columns} columns")]
    Column {
        /// The index given.
        column: usize,
        /// Columns of `W`.
        columns: usize,
    },
    /// The i32 accumulator could overflow.
    #[error(
        "K = {inner} is too large for an i32 accumulator: at most {max} products of codes in [-127, 127] fit; split K"
    )]
    AccumulatorOverflow {
        /// Inner dimension.
        inner: usize,
        /// Largest K that cannot overflow.
        max: usize,
    },
    /// A code of −128; codes are in [−127, 127].
    #[error("{what}: code -128 at [{row}, {column}]; codes of this method lie in [-127, 127]")]
    CodeOutOfRange {
        /// Which matrix.
        what: &'static str,
        /// Row of the code.
        row: usize,
        /// Column of the code.
        column: usize,
    },
    /// A zero point outside [−127, 127].
    #[error("zero point {value} of row {row}; zero points of this method lie in [-127, 127]")]
    ZeroPointOutOfRange {
        /// Row it belongs to.
        row: usize,
        /// Value given.
        value: i32,
    },
    /// A group's scale that is no bf16 number.
    #[error("scale {scale:e} of group {group} in row {row} is no bf16 number; scales of groups are")]
    GroupScale {
        /// Row it belongs to.
        row: usize,
        /// Group within the row.
        group: usize,
        /// Value given.
        scale: f32,
    },
    /// An outlier rule with a parameter that is not positive.
    #[error(
        "{parameter} = {value} is no outlier threshold: it must be positive (use OutlierRule::None for no outliers)"
    )]
    Threshold {
        /// `threshold` or `tau`.
        parameter: &'static str,
        /// Value given.
        value: f32,
    },
    /// An unknown scheme.
    #[error("unknown scheme `{name}`; known: {known}")]
    UnknownScheme {
        /// Name given.
        name: String,
        /// All names, separated by commas.
        known: String,
    },
}
