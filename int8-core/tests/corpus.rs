//! The corpus, run through the reference itself.

use std::collections::HashSet;

use half::{bf16, f16};
use int8_core::bound::{Arithmetic, compare};
use int8_core::corpus::{Case, cases, group_cases, random, random_groups};
use int8_core::{Element, LinearOutput, QuantizedMatrix, Weight, linear};
use ndarray::s;

/// What holds for the result of every case.
fn check<T: Element>(case: &Case, exact_columns: bool) {
    let (x, w) = (case.x.mapv(T::from_f32), case.w.mapv(T::from_f32));
    let mut weight = Weight::quantize(w.view(), &case.config);
    if exact_columns {
        weight = weight.with_all_columns_exact(w.view()).expect("its own W");
    }
    let bias = case.bias.as_ref().map(|bias| bias.view());
    let name = format!("{} in {}", case.name, T::NAME);
    let output: LinearOutput<T> =
        linear(x.view(), &weight, bias, &case.config).unwrap_or_else(|error| panic!("{name}: {error}"));

    let (m, n, k) = (case.x.nrows(), case.w.nrows(), case.x.ncols());
    assert_eq!((output.y.dim(), output.input.dim()), ((m, n), (m, k)), "{name}: shapes");
    for matrix in [&output.input, weight.quantized()] {
        assert!(matrix.codes().iter().all(|code| *code != i8::MIN), "{name}: a code of -128");
        assert!(matrix.zero_points().iter().all(|z| (-127..=127).contains(z)), "{name}: zero points");
        assert!(matrix.scales().iter().all(|s| s.is_nan() || s.is_sign_positive()), "{name}: scales");
    }
    let columns = output.outliers.columns();
    assert!(columns.is_sorted() && columns.iter().all(|column| *column < k), "{name}: outlier columns");
    for ((row, column), code) in output.input.codes().indexed_iter() {
        if output.outliers.is_outlier(row, column) {
            let zero = output.input.parameters(row, column).1;
            assert_eq!(i32::from(*code), zero, "{name}: a left-out value contributes at [{row}, {column}]");
        }
    }
    // A NaN scale is the only thing that makes the int8 part anything but finite.
    for ((row, column), value) in output.int8_part.indexed_iter() {
        let has_nan = |matrix: &QuantizedMatrix, row: usize| {
            let groups = matrix.groups();
            matrix.scales().slice(s![row * groups..(row + 1) * groups]).iter().any(|scale| scale.is_nan())
        };
        let nan = has_nan(&output.input, row) || has_nan(weight.quantized(), column);
        assert_eq!(value.is_finite(), !nan, "{name}: int8 part at [{row}, {column}]");
    }
    let found = compare(output.y.view(), &output, bias, Arithmetic::F32);
    assert!(found.within_bound(), "{name}: the reference is outside its own bound: {found:?}");
}

fn check_in_every_type(case: &Case) {
    for exact_columns in [false, true] {
        check::<f32>(case, exact_columns);
        check::<f16>(case, exact_columns);
        check::<bf16>(case, exact_columns);
    }
}

#[test]
fn named_cases_hold() {
    cases().iter().chain(&group_cases()).for_each(check_in_every_type);
}

#[test]
fn random_cases_hold() {
    (0..400).for_each(|seed| check_in_every_type(&random(seed)));
    (0..200).for_each(|seed| check_in_every_type(&random_groups(seed)));
}

#[test]
fn names_are_unique() {
    let mut names = HashSet::new();
    for case in cases().into_iter().chain(group_cases()) {
        assert!(names.insert(case.name.clone()), "two cases are called {}", case.name);
    }
}

/// An empty corpus would pass every backend.
#[test]
fn the_corpus_covers_what_it_promises() {
    let cases = cases();
    let any =
        |what: &str, holds: &dyn Fn(&Case) -> bool| assert!(cases.iter().any(holds), "no case with {what}");
    any("no rows", &|case| case.x.nrows() == 0);
    any("no outputs", &|case| case.w.nrows() == 0);
    any("no inner dimension", &|case| case.x.ncols() == 0);
    any("one row", &|case| case.x.nrows() == 1);
    any("K that is no multiple of four", &|case| case.x.ncols() % 4 != 0);
    any("a NaN", &|case| case.x.iter().any(|x| x.is_nan()));
    any("an infinity", &|case| case.x.iter().any(|x| x.is_infinite()));
    any("a bias", &|case| case.bias.is_some());
    any("no bias", &|case| case.bias.is_none());
    assert!(cases.len() >= 300, "{} cases", cases.len());
}

/// A seed determines its case on every machine.
#[test]
fn random_cases_are_reproducible() {
    let (first, second) = (random(17), random(17));
    assert_eq!((first.x, first.w, first.bias), (second.x, second.w, second.bias));
    assert_eq!(int8_core::corpus::Random::new(0).bits(), 0xE220_A839_7B1D_CDAF);
}
