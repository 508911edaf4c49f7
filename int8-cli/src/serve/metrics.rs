//! Counts of the server, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use int8_nn::engine::{EngineStats, Finished};

use crate::convert::{count, real_u64};

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

#[derive(Debug, Default)]
pub(super) struct Metrics {
    responses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    first_token: Mutex<Histogram>,
    total: Mutex<Histogram>,
}

#[derive(Debug, Default, Clone)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        self.count += 1;
        self.sum += value;
        let buckets = self.counts.iter_mut().zip(BUCKETS).filter(|(_, end)| value <= *end);
        buckets.for_each(|(count, _)| *count += 1);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (count, end) in self.counts.iter().zip(BUCKETS) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{end}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", self.sum, self.count);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    pub(super) fn response(&self, path: &'static str, status: u16) {
        *lock(&self.responses).entry((path, status)).or_default() += 1;
    }

    pub(super) fn finished(&self, finished: &Finished) {
        if let Some(first_token) = finished.first_token {
            lock(&self.first_token).add(first_token);
        }
        lock(&self.total).add(finished.total);
    }

    /// All counts as text. Writing to a string cannot fail.
    pub(super) fn text(&self, engine: Option<&EngineStats>) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "# HELP int8_http_responses_total Responses by path and status.");
        let _ = writeln!(out, "# TYPE int8_http_responses_total counter");
        for ((path, status), count) in lock(&self.responses).iter() {
            let _ = writeln!(out, "int8_http_responses_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        lock(&self.first_token).write(
            &mut out,
            "int8_time_to_first_token_seconds",
            "From submission to the first token.",
        );
        lock(&self.total).write(&mut out, "int8_request_seconds", "From submission to the end.");
        let Some(stats) = engine else { return out };
        let gauges = [
            ("requests_running", "Requests being computed.", count(stats.active)),
            ("requests_waiting", "Requests in the queue.", count(stats.waiting)),
            ("kept_prefixes", "Finished sequences kept for their prefix.", count(stats.kept_prefixes)),
            ("kv_pages", "Pages of the KV cache.", count(stats.pages)),
            ("kv_pages_free", "Pages that no sequence holds.", count(stats.free_pages)),
        ];
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens),
            ("cached_tokens_total", "Tokens of prompts found in kept pages.", stats.cached_tokens),
            ("new_tokens_total", "Generated tokens.", stats.new_tokens),
            ("prefill_forwards_total", "Forwards of prompts.", stats.prefill_forwards),
            ("decode_forwards_total", "Decode steps.", stats.decode_forwards),
            ("decode_rows_total", "Tokens of decode steps.", stats.decode_rows),
            ("preemptions_total", "Requests computed anew for want of pages.", stats.preempted),
            ("requests_finished_total", "Requests that ended well.", stats.finished),
            ("requests_cancelled_total", "Requests that were cancelled.", stats.cancelled),
            ("requests_expired_total", "Requests that ran out of time.", stats.expired),
            ("requests_failed_total", "Requests that failed.", stats.failed),
        ];
        let kinds = gauges.map(|one| ("gauge", one)).into_iter().chain(counters.map(|one| ("counter", one)));
        for (kind, (name, help, value)) in kinds {
            let _ = writeln!(
                out,
                "# HELP int8_{name} {help}\n# TYPE int8_{name} {kind}\nint8_{name} {}",
                real_u64(value)
            );
        }
        out
    }
}
