//! [`Instructions`] in 512-bit and in pairs of 256-bit registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::instructions::{Instructions, LANES};
use crate::tokens::{AmxInt8, Avx2, Avx512Vnni};

/// All bits but the sign of an f32.
const MAGNITUDE: i32 = 0x7FFF_FFFF;

/// Forwards each method to a function that has the instructions enabled; the token is the proof that they exist.
macro_rules! forward {
    ($module:ident: $($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $type),*) $(-> $result)? {
                // SAFETY: the token proves the features that the module's functions enable.
                unsafe { $module::$name($($argument),*) }
            }
        )*
    };
}

macro_rules! all_operations {
    ($module:ident) => {
        forward! { $module:
            splat(value: f32) -> Self::Floats;
            load(from: &[f32; LANES]) -> Self::Floats;
            store(value: Self::Floats, to: &mut [f32; LANES]);
            load_f16(from: &[f16; LANES]) -> Self::Floats;
            store_f16(value: Self::Floats, to: &mut [f16; LANES]);
            load_i8(from: &[i8; LANES]) -> Self::Floats;
            load_bf16(from: &[bf16; LANES]) -> Self::Floats;
            store_bf16(value: Self::Floats, to: &mut [bf16; LANES]);
            add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
            multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
            multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
            divide(a: Self::Floats, b: Self::Floats) -> Self::Floats;
            minimum(a: Self::Floats, b: Self::Floats) -> Self::Floats;
            maximum(a: Self::Floats, b: Self::Floats) -> Self::Floats;
            below(value: Self::Floats, threshold: Self::Floats) -> Self::Floats;
            masked(value: Self::Floats, mask: &[u32; LANES]) -> Self::Floats;
            reaching(value: Self::Floats, threshold: Self::Floats) -> u32;
            smallest(value: Self::Floats) -> f32;
            largest(value: Self::Floats) -> f32;
            splat_int(value: i32) -> Self::Ints;
            load_int(from: &[i32; LANES]) -> Self::Ints;
            store_int(value: Self::Ints, to: &mut [i32; LANES]);
            add_int(a: Self::Ints, b: Self::Ints) -> Self::Ints;
            subtract_product(a: Self::Ints, b: Self::Ints, c: Self::Ints) -> Self::Ints;
            clamp_code(value: Self::Ints) -> Self::Ints;
            maximum_int(a: Self::Ints, b: Self::Ints) -> Self::Ints;
            largest_int(value: Self::Ints) -> i32;
            count_up_to(counts: Self::Ints, value: Self::Ints, limit: Self::Ints) -> Self::Ints;
            sum_int(value: Self::Ints) -> i32;
            magnitude(value: Self::Floats) -> Self::Ints;
            round(value: Self::Floats) -> Self::Ints;
            to_floats(value: Self::Ints) -> Self::Floats;
            power_of_two(n: Self::Ints) -> Self::Floats;
            store_codes(value: Self::Ints, offset: u8, to: &mut [i8; LANES]);
            byte_of_k4(k4: &[[i8; 4]; LANES], lane: u32) -> Self::Ints;
        }
    };
}

impl Instructions for Avx512Vnni {
    type Floats = __m512;
    type Ints = __m512i;
    const REGISTERS: usize = 32;
    all_operations!(avx512);
    forward! { avx512:
        store_code_block(codes: [__m512i; 4], offset: u8, to: &mut [i8; 4 * LANES]);
        load_bf16_alternating(from: &[bf16; 2 * LANES], mask: Option<&[u16; 2 * LANES]>) -> [__m512; 2];
        store_code_block_alternating(codes: [__m512i; 4], offset: u8, to: &mut [i8; 4 * LANES]);
        store_bf16_pair(values: [__m512; 2], to: &mut [bf16; 2 * LANES]);
        interleave_bf16(rows: [&[bf16; 2 * LANES]; 2], to: &mut [bf16; 4 * LANES]);
    }
}

/// As AVX-512 VNNI, but for what AVX-512 BF16 has an instruction for.
impl Instructions for AmxInt8 {
    type Floats = __m512;
    type Ints = __m512i;
    const REGISTERS: usize = 32;
    all_operations!(avx512);
    forward! { avx512:
        store_code_block(codes: [__m512i; 4], offset: u8, to: &mut [i8; 4 * LANES]);
        load_bf16_alternating(from: &[bf16; 2 * LANES], mask: Option<&[u16; 2 * LANES]>) -> [__m512; 2];
        store_code_block_alternating(codes: [__m512i; 4], offset: u8, to: &mut [i8; 4 * LANES]);
        interleave_bf16(rows: [&[bf16; 2 * LANES]; 2], to: &mut [bf16; 4 * LANES]);
    }
    forward! { avx512bf16:
        store_bf16_pair(values: [__m512; 2], to: &mut [bf16; 2 * LANES]);
    }
}

impl Instructions for Avx2 {
    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];
    all_operations!(avx2);
}

/// Defines the functions of one instruction set. Those that read or write memory get whole arrays, so every access is
/// in bounds.
macro_rules! functions {
    ($features:literal: $(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {
        $(
            /// # Safety
            /// The processor has the enabled features.
            #[inline]
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name($($argument: $type),*) $(-> $result)? $body
        )*
    };
}

mod avx512 {
    use super::*;

    /// Where the upper halves of the lanes of two vectors are, in 16-bit elements.
    static UPPER_HALVES: [u16; 2 * LANES] = [
        1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51,
        53, 55, 57, 59, 61, 63,
    ];

    functions! { "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c":
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn load(from: &[f32; LANES]) -> __m512 {
            // SAFETY: 16 elements.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        fn store(value: __m512, to: &mut [f32; LANES]) {
            // SAFETY: 16 elements.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
        }
        fn load_f16(from: &[f16; LANES]) -> __m512 {
            // SAFETY: 16 elements of 16 bits.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) })
        }
        fn store_f16(value: __m512, to: &mut [f16; LANES]) {
            let narrow = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
            // SAFETY: 16 elements of 16 bits.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow) }
        }
        fn load_i8(from: &[i8; LANES]) -> __m512 {
            // SAFETY: 16 bytes.
            let narrow = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(narrow))
        }
        fn load_bf16(from: &[bf16; LANES]) -> __m512 {
            // SAFETY: 16 elements of 16 bits.
            let narrow = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        }
        fn round_to_bf16(value: __m512) -> __m512i {
            // As `convert::f32_to_bf16`, in the upper halves.
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x1_0000));
            let sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
            let sum = _mm512_mask_sub_epi32(sum, odd, sum, _mm512_set1_epi32(-1));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x40_0000))
        }
        fn store_bf16(value: __m512, to: &mut [bf16; LANES]) {
            // SAFETY: the same features.
            let rounded = _mm512_srli_epi32::<16>(unsafe { round_to_bf16(value) });
            // SAFETY: 16 elements of 16 bits.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded)) }
        }
        fn store_bf16_pair(values: [__m512; 2], to: &mut [bf16; 2 * LANES]) {
            // SAFETY: the same features.
            let [low, high] = unsafe { [round_to_bf16(values[0]), round_to_bf16(values[1])] };
            // SAFETY: 32 indices.
            let upper_halves = unsafe { _mm512_loadu_si512(UPPER_HALVES.as_ptr().cast()) };
            let narrow = _mm512_permutex2var_epi16(low, upper_halves, high);
            // SAFETY: 32 elements of 16 bits.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), narrow) }
        }
        fn interleave_bf16(rows: [&[bf16; 2 * LANES]; 2], to: &mut [bf16; 4 * LANES]) {
            // SAFETY: 32 elements of 16 bits each.
            let [a, b] = rows.map(|row| unsafe { _mm512_loadu_si512(row.as_ptr().cast()) });
            // Within quarters of the registers: of each, the pairs of the lower and of the upper half.
            let (low, high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
            let first = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
            let second = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
            // SAFETY: 64 elements of 16 bits.
            unsafe {
                _mm512_storeu_si512(to.as_mut_ptr().cast(), first);
                _mm512_storeu_si512(to.as_mut_ptr().add(2 * LANES).cast(), second);
            }
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn multiply(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn divide(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn minimum(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn maximum(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn below(value: __m512, threshold: __m512) -> __m512 {
            // Not greater or equal: also true of a NaN, which stays.
            let keep = _mm512_cmp_ps_mask::<_CMP_NGE_UQ>(_mm512_abs_ps(value), threshold);
            _mm512_maskz_mov_ps(keep, value)
        }
        fn masked(value: __m512, mask: &[u32; LANES]) -> __m512 {
            // SAFETY: 16 elements.
            let mask = unsafe { _mm512_loadu_ps(mask.as_ptr().cast()) };
            _mm512_and_ps(value, mask)
        }
        fn reaching(value: __m512, threshold: __m512) -> u32 {
            u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(_mm512_abs_ps(value), threshold))
        }
        fn smallest(value: __m512) -> f32 { _mm512_reduce_min_ps(value) }
        fn largest(value: __m512) -> f32 { _mm512_reduce_max_ps(value) }
        fn splat_int(value: i32) -> __m512i { _mm512_set1_epi32(value) }
        fn load_int(from: &[i32; LANES]) -> __m512i {
            // SAFETY: 16 elements.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }
        fn store_int(value: __m512i, to: &mut [i32; LANES]) {
            // SAFETY: 16 elements.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), value) }
        }
        fn add_int(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn subtract_product(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
            _mm512_sub_epi32(a, _mm512_mullo_epi32(b, c))
        }
        fn clamp_code(value: __m512i) -> __m512i {
            _mm512_max_epi32(_mm512_min_epi32(value, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127))
        }
        fn maximum_int(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epi32(a, b) }
        fn largest_int(value: __m512i) -> i32 { _mm512_reduce_max_epi32(value) }
        fn count_up_to(counts: __m512i, value: __m512i, limit: __m512i) -> __m512i {
            let counted = _mm512_cmple_epi32_mask(value, limit);
            _mm512_mask_add_epi32(counts, counted, counts, _mm512_set1_epi32(1))
        }
        fn sum_int(value: __m512i) -> i32 { _mm512_reduce_add_epi32(value) }
        fn magnitude(value: __m512) -> __m512i {
            _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(MAGNITUDE))
        }
        // The default rounding mode, half to even: Rust code may not run in another.
        fn round(value: __m512) -> __m512i { _mm512_cvtps_epi32(value) }
        fn to_floats(value: __m512i) -> __m512 { _mm512_cvtepi32_ps(value) }
        fn power_of_two(n: __m512i) -> __m512 {
            let exponent = _mm512_add_epi32(n, _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
        fn store_codes(value: __m512i, offset: u8, to: &mut [i8; LANES]) {
            let bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(value), _mm_set1_epi8(offset.cast_signed()));
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bytes) }
        }
        fn store_code_block(codes: [__m512i; 4], offset: u8, to: &mut [i8; 4 * LANES]) {
            let words = [_mm512_packs_epi32(codes[0], codes[1]), _mm512_packs_epi32(codes[2], codes[3])];
            // Packing works within quarters of the registers: quarter i has four bytes of each vector, from lane 4i on.
            let packed = _mm512_packs_epi16(words[0], words[1]);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(order, packed);
            let bytes = _mm512_xor_si512(bytes, _mm512_set1_epi8(offset.cast_signed()));
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) }
        }
        fn load_bf16_alternating(from: &[bf16; 2 * LANES], mask: Option<&[u16; 2 * LANES]>) -> [__m512; 2] {
            // SAFETY: 32 elements of 16 bits.
            let mut bits = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
            if let Some(mask) = mask {
                // SAFETY: 32 elements of 16 bits.
                bits = _mm512_and_si512(bits, unsafe { _mm512_loadu_si512(mask.as_ptr().cast()) });
            }
            // Each pair is the bits of its second number, with those of the first behind them.
            let odd = _mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)), _mm512_castsi512_ps(odd)]
        }
        fn store_code_block_alternating(codes: [__m512i; 4], offset: u8, to: &mut [i8; 4 * LANES]) {
            /// Bits of the second and third operand, where those of the first are ones and zeros.
            const SELECT: i32 = 0xCA;
            let [even, odd, next_even, next_odd] = codes;
            let lower = _mm512_set1_epi32(0xFFFF);
            let words = [
                _mm512_ternarylogic_epi32::<SELECT>(lower, even, _mm512_slli_epi32::<16>(odd)),
                _mm512_ternarylogic_epi32::<SELECT>(lower, next_even, _mm512_slli_epi32::<16>(next_odd)),
            ];
            // Packing works within quarters of the registers: each has eight bytes of both.
            let packed = _mm512_packs_epi16(words[0], words[1]);
            let bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed);
            let bytes = _mm512_xor_si512(bytes, _mm512_set1_epi8(offset.cast_signed()));
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) }
        }
        fn byte_of_k4(k4: &[[i8; 4]; LANES], lane: u32) -> __m512i {
            // SAFETY: 64 bytes.
            let k4 = unsafe { _mm512_loadu_si512(k4.as_ptr().cast()) };
            let up = _mm_cvtsi32_si128((24 - 8 * lane).cast_signed());
            _mm512_srai_epi32::<24>(_mm512_sll_epi32(k4, up))
        }
    }
}

mod avx512bf16 {
    use super::*;

    functions! { "avx512f,avx512bf16":
        fn store_bf16_pair(values: [__m512; 2], to: &mut [bf16; 2 * LANES]) {
            // One instruction instead of eleven. It takes subnormal numbers, below 1.2e-38, for 0.
            let narrow = _mm512_cvtne2ps_pbh(values[1], values[0]);
            // SAFETY: 32 elements of 16 bits, in a type of that size without invalid patterns.
            unsafe { to.as_mut_ptr().cast::<__m512bh>().write_unaligned(narrow) }
        }
    }
}

mod avx2 {
    use super::*;

    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];

    functions! { "avx2,fma,f16c":
        fn splat(value: f32) -> Floats { [_mm256_set1_ps(value); 2] }
        fn load(from: &[f32; LANES]) -> Floats {
            // SAFETY: 16 elements.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        fn store(value: Floats, to: &mut [f32; LANES]) {
            // SAFETY: 16 elements.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
            }
        }
        fn load_f16(from: &[f16; LANES]) -> Floats {
            // SAFETY: 16 elements of 16 bits.
            let narrow = unsafe {
                [_mm_loadu_si128(from.as_ptr().cast()), _mm_loadu_si128(from.as_ptr().add(8).cast())]
            };
            [_mm256_cvtph_ps(narrow[0]), _mm256_cvtph_ps(narrow[1])]
        }
        fn store_f16(value: Floats, to: &mut [f16; LANES]) {
            for (i, value) in value.into_iter().enumerate() {
                let narrow = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
                // SAFETY: 16 elements of 16 bits, 8 at a time.
                unsafe { _mm_storeu_si128(to.as_mut_ptr().add(8 * i).cast(), narrow) }
            }
        }
        fn load_i8(from: &[i8; LANES]) -> Floats {
            // SAFETY: twice 8 bytes of 16.
            let narrow = unsafe {
                [_mm_loadl_epi64(from.as_ptr().cast()), _mm_loadl_epi64(from.as_ptr().add(8).cast())]
            };
            let [a, b] = [_mm256_cvtepi8_epi32(narrow[0]), _mm256_cvtepi8_epi32(narrow[1])];
            [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)]
        }
        fn load_bf16(from: &[bf16; LANES]) -> Floats {
            // SAFETY: 16 elements of 16 bits.
            let narrow = unsafe {
                [_mm_loadu_si128(from.as_ptr().cast()), _mm_loadu_si128(from.as_ptr().add(8).cast())]
            };
            let [a, b] = [_mm256_cvtepu16_epi32(narrow[0]), _mm256_cvtepu16_epi32(narrow[1])];
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b))]
        }
        fn store_bf16(value: Floats, to: &mut [bf16; LANES]) {
            let mut rounded = [_mm256_setzero_si256(); 2];
            for (rounded, value) in rounded.iter_mut().zip(value) {
                // As `convert::f32_to_bf16`.
                let bits = _mm256_castps_si256(value);
                let upper = _mm256_srli_epi32::<16>(bits);
                let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
                let sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
                let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
                *rounded = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(sum), quiet, nan);
            }
            // Packing works within halves of the registers; the permutation puts the quarters in order.
            let packed = _mm256_packus_epi32(rounded[0], rounded[1]);
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            // SAFETY: 16 elements of 16 bits.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), ordered) }
        }
        fn add(a: Floats, b: Floats) -> Floats { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn multiply(a: Floats, b: Floats) -> Floats { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn multiply_add(a: Floats, b: Floats, c: Floats) -> Floats {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        fn divide(a: Floats, b: Floats) -> Floats { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        fn minimum(a: Floats, b: Floats) -> Floats { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        fn maximum(a: Floats, b: Floats) -> Floats { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        fn below(value: Floats, threshold: Floats) -> Floats {
            let mut kept = value;
            for (kept, threshold) in kept.iter_mut().zip(threshold) {
                let magnitude = _mm256_and_ps(*kept, _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE)));
                // Not greater or equal: also true of a NaN, which stays.
                *kept = _mm256_and_ps(*kept, _mm256_cmp_ps::<_CMP_NGE_UQ>(magnitude, threshold));
            }
            kept
        }
        fn masked(value: Floats, mask: &[u32; LANES]) -> Floats {
            // SAFETY: 16 elements.
            let mask = unsafe {
                [_mm256_loadu_ps(mask.as_ptr().cast()), _mm256_loadu_ps(mask.as_ptr().add(8).cast())]
            };
            [_mm256_and_ps(value[0], mask[0]), _mm256_and_ps(value[1], mask[1])]
        }
        fn reaching(value: Floats, threshold: Floats) -> u32 {
            let sign = _mm256_castsi256_ps(_mm256_set1_epi32(MAGNITUDE));
            let [a, b] = [_mm256_and_ps(value[0], sign), _mm256_and_ps(value[1], sign)];
            let [a, b] = [
                _mm256_cmp_ps::<_CMP_GE_OQ>(a, threshold[0]),
                _mm256_cmp_ps::<_CMP_GE_OQ>(b, threshold[1]),
            ];
            (_mm256_movemask_ps(a) | (_mm256_movemask_ps(b) << 8)).cast_unsigned()
        }
        fn smallest(value: Floats) -> f32 {
            let eight = _mm256_min_ps(value[0], value[1]);
            let four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
        }
        fn largest(value: Floats) -> f32 {
            let eight = _mm256_max_ps(value[0], value[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn count_up_to(counts: Ints, value: Ints, limit: Ints) -> Ints {
            // A lane above the limit is −1.
            std::array::from_fn(|i| {
                let above = _mm256_cmpgt_epi32(value[i], limit[i]);
                _mm256_add_epi32(counts[i], _mm256_add_epi32(above, _mm256_set1_epi32(1)))
            })
        }
        fn sum_int(value: Ints) -> i32 {
            let eight = _mm256_add_epi32(value[0], value[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
        fn largest_int(value: Ints) -> i32 {
            let eight = _mm256_max_epi32(value[0], value[1]);
            let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
        fn splat_int(value: i32) -> Ints { [_mm256_set1_epi32(value); 2] }
        fn load_int(from: &[i32; LANES]) -> Ints {
            // SAFETY: 16 elements.
            unsafe {
                [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(8).cast())]
            }
        }
        fn store_int(value: Ints, to: &mut [i32; LANES]) {
            // SAFETY: 16 elements.
            unsafe {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), value[0]);
                _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), value[1]);
            }
        }
        fn add_int(a: Ints, b: Ints) -> Ints { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        fn subtract_product(a: Ints, b: Ints, c: Ints) -> Ints {
            [
                _mm256_sub_epi32(a[0], _mm256_mullo_epi32(b[0], c[0])),
                _mm256_sub_epi32(a[1], _mm256_mullo_epi32(b[1], c[1])),
            ]
        }
        fn clamp_code(value: Ints) -> Ints {
            let (low, high) = (_mm256_set1_epi32(-127), _mm256_set1_epi32(127));
            [
                _mm256_max_epi32(_mm256_min_epi32(value[0], high), low),
                _mm256_max_epi32(_mm256_min_epi32(value[1], high), low),
            ]
        }
        fn maximum_int(a: Ints, b: Ints) -> Ints { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
        fn magnitude(value: Floats) -> Ints {
            let bits = _mm256_set1_epi32(MAGNITUDE);
            [
                _mm256_and_si256(_mm256_castps_si256(value[0]), bits),
                _mm256_and_si256(_mm256_castps_si256(value[1]), bits),
            ]
        }
        // The default rounding mode, half to even: Rust code may not run in another.
        fn round(value: Floats) -> Ints { [_mm256_cvtps_epi32(value[0]), _mm256_cvtps_epi32(value[1])] }
        fn to_floats(value: Ints) -> Floats { [_mm256_cvtepi32_ps(value[0]), _mm256_cvtepi32_ps(value[1])] }
        fn power_of_two(n: Ints) -> Floats {
            let bias = _mm256_set1_epi32(127);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[0], bias))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[1], bias))),
            ]
        }
        fn store_codes(value: Ints, offset: u8, to: &mut [i8; LANES]) {
            // Packing saturates only what is no code; the permutation puts the quarters in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(value[0], value[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let bytes = _mm_xor_si128(bytes, _mm_set1_epi8(offset.cast_signed()));
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bytes) }
        }
        fn byte_of_k4(k4: &[[i8; 4]; LANES], lane: u32) -> Ints {
            let up = _mm_cvtsi32_si128((24 - 8 * lane).cast_signed());
            // SAFETY: 64 bytes.
            let k4 = unsafe {
                [_mm256_loadu_si256(k4.as_ptr().cast()), _mm256_loadu_si256(k4.as_ptr().add(8).cast())]
            };
            [
                _mm256_srai_epi32::<24>(_mm256_sll_epi32(k4[0], up)),
                _mm256_srai_epi32::<24>(_mm256_sll_epi32(k4[1], up)),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert;
    use crate::tokens::Portable;

    /// Every operation gives the bits that the portable one gives.
    fn agrees<I: Instructions>(simd: I) {
        let plain = Portable::new().expect("always there");
        let mut state = 7_u32;
        let mut bits = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let special =
            [0.0, -0.0, f32::NAN, f32::INFINITY, -f32::INFINITY, 6.0, -6.0, 0.5, 1.5, -2.5, 1e-40, 65_520.0];
        for round in 0..2000 {
            let a: [f32; LANES] = std::array::from_fn(|i| match round % 3 {
                0 => f32::from_bits(bits()),
                1 => special[(bits() >> 8) as usize % special.len()],
                _ => {
                    f32::from(i8::try_from(bits() >> 26).expect("six bits")) * 0.25 - 4.0
                        + if i % 2 == 0 { 0.0 } else { 0.125 }
                }
            });
            let ints: [i32; LANES] = std::array::from_fn(|_| bits().cast_signed());
            let codes = ints.map(|v| v % 128);
            let (x, y) = (simd.load(&a), plain.load(&a));
            let same = |name: &str, found: I::Floats, expected: [f32; LANES]| {
                let mut stored = [0.0; LANES];
                simd.store(found, &mut stored);
                for (found, expected) in stored.into_iter().zip(expected) {
                    assert!(
                        found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                        "{name}"
                    );
                }
            };
            let same_ints = |name: &str, found: I::Ints, expected: [i32; LANES]| {
                let mut stored = [0; LANES];
                simd.store_int(found, &mut stored);
                assert_eq!(stored, expected, "{name}");
            };
            same("add", simd.add(x, simd.splat(1.5)), plain.add(y, [1.5; LANES]));
            same("multiply", simd.multiply(x, simd.splat(1.1)), plain.multiply(y, [1.1; LANES]));
            same("below", simd.below(x, simd.splat(6.0)), plain.below(y, [6.0; LANES]));
            let mask: [u32; LANES] = std::array::from_fn(|i| if ints[i] < 0 { u32::MAX } else { 0 });
            same("masked", simd.masked(x, &mask), plain.masked(y, &mask));
            assert_eq!(simd.reaching(x, simd.splat(6.0)), plain.reaching(y, [6.0; LANES]));
            same_ints("magnitude", simd.magnitude(x), plain.magnitude(y));
            let small = a.map(|v| if v.abs() < 4e6 { v } else { 2.5 });
            same_ints("round", simd.round(simd.load(&small)), plain.round(small));
            same(
                "minimum",
                simd.minimum(simd.load(&small), simd.splat(0.25)),
                plain.minimum(small, [0.25; LANES]),
            );
            same(
                "maximum",
                simd.maximum(simd.load(&small), simd.splat(0.25)),
                plain.maximum(small, [0.25; LANES]),
            );
            for limit in [-0.25, f32::INFINITY] {
                same("minimum", simd.minimum(simd.splat(limit), x), plain.minimum([limit; LANES], y));
                same("maximum", simd.maximum(simd.splat(limit), x), plain.maximum([limit; LANES], y));
            }
            same("divide", simd.divide(simd.splat(1.5), x), plain.divide([1.5; LANES], y));
            let exponents = codes.map(|code| code.clamp(-126, 127));
            let powers = simd.power_of_two(simd.load_int(&exponents));
            same("power of two", powers, plain.power_of_two(exponents));
            let i = simd.load_int(&ints);
            same("to floats", simd.to_floats(i), plain.to_floats(ints));
            same_ints("add", simd.add_int(i, simd.splat_int(5)), plain.add_int(ints, [5; LANES]));
            let product = plain.subtract_product(ints, codes, [-77; LANES]);
            same_ints(
                "product",
                simd.subtract_product(i, simd.load_int(&codes), simd.splat_int(-77)),
                product,
            );
            same_ints("clamp", simd.clamp_code(i), plain.clamp_code(ints));
            same_ints("maximum", simd.maximum_int(i, simd.splat_int(9)), plain.maximum_int(ints, [9; LANES]));
            let (mut found, mut expected) = ([0; LANES], [0; LANES]);
            let blocks =
                [codes, codes.map(|code| code ^ 85), codes.map(|code| -code), codes.map(|code| code / 2)];
            for offset in [0, 128] {
                simd.store_codes(simd.load_int(&codes), offset, &mut found);
                plain.store_codes(codes, offset, &mut expected);
                assert_eq!(found, expected, "codes");
                let (mut found, mut expected) = ([0; 4 * LANES], [0; 4 * LANES]);
                simd.store_code_block(blocks.map(|block| simd.load_int(&block)), offset, &mut found);
                plain.store_code_block(blocks, offset, &mut expected);
                assert_eq!(found, expected, "block of codes");
            }
            let row: [bf16; 4 * LANES] =
                std::array::from_fn(|k| bf16::from_f32(convert::accumulator(blocks[k / LANES][k % LANES])));
            let masks: [u16; 4 * LANES] = std::array::from_fn(|k| if k % 3 == 0 { 0 } else { u16::MAX });
            for mask in [None, Some(&masks)] {
                let mut codes = [simd.splat_int(0); 4];
                for (i, pair) in row.as_chunks().0.iter().enumerate() {
                    let mask = mask.map(|mask| &mask.as_chunks().0[i]);
                    let [a, b] = simd.load_bf16_alternating(pair, mask);
                    [codes[2 * i], codes[2 * i + 1]] = [simd.round(a), simd.round(b)];
                }
                let mut found = [0; 4 * LANES];
                simd.store_code_block_alternating(codes, 0, &mut found);
                for (k, found) in found.iter().enumerate() {
                    let kept = mask.is_none_or(|mask| mask[k] != 0);
                    let expected = if kept { blocks[k / LANES][k % LANES] } else { 0 };
                    assert_eq!(i32::from(*found), expected, "alternating, {k}");
                }
            }
            let k4 = ints.map(|v| v.to_le_bytes().map(u8::cast_signed));
            let (rows, mut pairs) = (row.as_chunks().0, [bf16::ZERO; 4 * LANES]);
            simd.interleave_bf16([&rows[0], &rows[1]], &mut pairs);
            for (k, found) in pairs.iter().enumerate() {
                assert_eq!(*found, rows[k % 2][k / 2], "interleaved, {k}");
            }
            for lane in 0..4 {
                same_ints("k4", simd.byte_of_k4(&k4, lane), plain.byte_of_k4(&k4, lane));
            }
            let (mut found, mut expected) = ([f16::ZERO; LANES], [f16::ZERO; LANES]);
            simd.store_f16(x, &mut found);
            plain.store_f16(y, &mut expected);
            assert!(
                found.iter().zip(expected).all(|(a, b)| *a == b || (a.is_nan() && b.is_nan())),
                "{found:?} {expected:?}"
            );
            same("f16", simd.load_f16(&found), plain.load_f16(&found));
            let (mut found, mut expected) = ([bf16::ZERO; LANES], [bf16::ZERO; LANES]);
            simd.store_bf16(x, &mut found);
            plain.store_bf16(y, &mut expected);
            assert_eq!(found.map(bf16::to_bits), expected.map(bf16::to_bits), "bf16");
            same("bf16", simd.load_bf16(&found), plain.load_bf16(&found));
            let mut pair = [bf16::ZERO; 2 * LANES];
            simd.store_bf16_pair([x, simd.load(&small)], &mut pair);
            simd.store_bf16(simd.load(&small), &mut expected);
            assert_eq!(pair.map(bf16::to_bits)[..LANES], found.map(bf16::to_bits), "first of a pair");
            assert_eq!(pair.map(bf16::to_bits)[LANES..], expected.map(bf16::to_bits), "second of a pair");
        }
    }

    #[test]
    fn lanes_agree_with_the_portable_ones() {
        let (avx2, avx512) = (Avx2::new(), Avx512Vnni::new());
        println!("avx2 {}, avx-512 {}", avx2.is_some(), avx512.is_some());
        avx2.into_iter().for_each(agrees);
        avx512.into_iter().for_each(agrees);
    }
}
