//! Attention of a prompt, and of the token behind it: the kernels of this processor and the types of the KV cache, in turns.
//!
//!     cargo run --release -p int8-cpu --example attention -- [rows] [heads kv_heads size]
//!
//! Defaults: 2048 rows, the 9 heads of 64 over 3 KV heads of SmolLM2-135M. Medians, and how many times as fast as the first line.
//! The token reads the caches of 30 layers, which together are no longer in L2.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::rc::Rc;
use std::time::{Duration, Instant};

use int8_core::KvType;
use int8_core::corpus::Random;
use int8_cpu::Kernel;
use int8_cpu::attention::{Attention, Bias, KvPages, PAGE_POSITIONS, Query};
use ndarray::{Array2, s};

/// Time that each contestant gets, in turns.
const BUDGET: Duration = Duration::from_secs(2);

/// Layers of the cache.
const LAYERS: usize = 30;

struct Contestant {
    kernel: Kernel,
    cache: Rc<KvPages>,
    times: Vec<Duration>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let rows = numbers.first().copied().unwrap_or(2048);
    let [heads, kv_heads, size] =
        numbers.get(1..4).and_then(|shape| shape.try_into().ok()).unwrap_or([9, 3, 64]);
    let random = &mut Random::new(1);
    let queries = random.matrix(rows, heads * size, 1.0);
    let [keys, values] = [(); 2].map(|()| random.matrix(rows, kv_heads * size, 1.0));
    let pages = rows.div_ceil(PAGE_POSITIONS);
    let table: Vec<u32> = (0..).take(pages).collect();

    let mut contestants = Vec::new();
    for element in KvType::ALL {
        let mut cache = KvPages::new(element, LAYERS, kv_heads, size, pages)?;
        for layer in 0..LAYERS {
            cache.write(Kernel::best(), layer, &table, 0, keys.view(), values.view())?;
        }
        let cache = Rc::new(cache);
        // The portable kernel would take most of the time.
        for kernel in Kernel::available().into_iter().filter(|kernel| kernel.name() != "portable") {
            contestants.push(Contestant { kernel, cache: cache.clone(), times: Vec::new() });
        }
    }
    println!("{heads} heads of {size} over {kv_heads}, {} threads", rayon::current_num_threads());
    let prompt: Vec<Query> = (0..rows).map(|position| Query { position, span: 0..position + 1 }).collect();
    for (name, queried, layers) in
        [("prompt", &prompt[..], 1), ("the token behind it, all layers", &prompt[rows - 1..], LAYERS)]
    {
        let queries = queries.slice(s![rows - queried.len().., ..]);
        let mut out = Array2::zeros(queries.raw_dim());
        let start = Instant::now();
        let enough = BUDGET * u32::try_from(contestants.len())?;
        while start.elapsed() < enough || contestants[0].times.len() < 5 {
            for Contestant { kernel, cache, times } in &mut contestants {
                let attention = Attention {
                    kernel: *kernel,
                    heads,
                    scale: 0.125,
                    softcap: None,
                    bias: Bias::None,
                    sinks: None,
                };
                let start = Instant::now();
                for layer in 0..layers {
                    attention.attend(queries, &cache.sequence(layer, &table), queried, out.view_mut())?;
                }
                times.push(start.elapsed());
            }
        }
        println!("{rows} positions, {name}");
        let mut first = None;
        for Contestant { kernel, cache, times } in &mut contestants {
            times.sort_unstable();
            let seconds = times[times.len() / 2].as_secs_f64();
            let first = *first.get_or_insert(seconds);
            let element = cache.element().name();
            println!("{:12} {element:4} {:9.3} ms {:6.2}×", kernel.name(), 1e3 * seconds, first / seconds);
            times.clear();
        }
    }
    Ok(())
}
