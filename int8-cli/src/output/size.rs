//! Sizes as text.

use crate::convert::real_u64;

/// A size in bytes, in decimal units, three digits.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = real_u64(bytes);
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let digits = if unit == "B" || value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}
