//! A decoder at work: KV cache and activations, allocated once for forwards of any content.

use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use crate::Error;
use crate::backend::{
    ActivationRole, Backend, BatchCapacity, CacheCapacity, GraphKey, KvType, PageTables, Phase, RowSelection,
    Segment,
};
use crate::block::{self, Context};
use crate::decoder::Decoder;
use crate::group::{Group, Step};
use crate::sampler::Sampler;
use crate::scratch::Scratch;

/// The size of a [`Session`]: every buffer is allocated for it when the session is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// The type that keys and values are rounded to.
    pub kv_cache: KvType,
    /// Sequences.
    pub sequences: usize,
    /// Most tokens of one sequence.
    pub max_positions: usize,
    /// Most tokens of one forward.
    pub max_rows: usize,
    /// Most rows of logits at once.
    pub max_logits: usize,
    /// Tokens that all sequences share out among them, in whole pages; `None`: enough for each to reach `max_positions`.
    pub total_positions: Option<usize>,
}

impl SessionOptions {
    /// One sequence of `tokens` tokens in one forward, with logits of all of them; keys and values in f32.
    pub fn text(tokens: usize) -> Self {
        Self {
            kv_cache: KvType::F32,
            sequences: 1,
            max_positions: tokens,
            max_rows: tokens,
            max_logits: tokens,
            total_positions: None,
        }
    }
}

/// A decoder at work: the KV cache and the activations of a forward.
#[derive(Debug)]
pub struct Session<'m, B: Backend> {
    decoder: &'m Decoder<B>,
    options: SessionOptions,
    /// One for each stage of the decoder, all with the same sequences and pages.
    stages: Vec<StageState<B>>,
    /// Keys and values of an encoder's output.
    cross_kv: Option<B::Cache>,
    /// Token embeddings where they are narrower than the residual stream.
    narrow: B::Activations,
    /// Input of the head where it is narrower, on the head's backend.
    narrow_out: B::Activations,
    /// Hidden states that logits are computed from, on the backend of the last stage.
    selected: B::Activations,
    /// The same on the head's backend, where it is another.
    handed_on: Option<B::Activations>,
    logits: B::Activations,
    host: Vec<f32>,
    lengths: Vec<usize>,
    /// Tokens that each sequence is known to reach.
    expected: Vec<usize>,
    /// Number of rows of each segment of the last forward.
    segments: Vec<usize>,
    /// Where other processes have parts of the model: what makes their sessions do what this one does.
    led: Option<Arc<Led>>,
}

/// The sessions of other processes that do what one of the first process does.
#[derive(Debug)]
struct Led {
    group: Arc<Group>,
    session: u32,
}

impl Led {
    /// While the result lives, no other session begins a step.
    fn begin<'a>(
        led: Option<&'a Arc<Self>>,
        step: impl FnOnce(u32) -> Step<'a>,
    ) -> Result<Option<MutexGuard<'a, ()>>, Error> {
        led.map(|led| led.group.begin(&step(led.session))).transpose()
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        // A process that does not hear it has ended.
        drop(self.group.begin(&Step::Close { session: self.session }));
    }
}

/// What a stage hands to the next one.
struct Handed<'a, B: Backend> {
    backend: &'a B,
    /// The residual stream.
    x: &'a B::Activations,
    /// The token embedding, where blocks need it again.
    embedded: Option<&'a B::Activations>,
}

/// What a backend holds for its blocks.
#[derive(Debug)]
struct StageState<B: Backend> {
    cache: B::Cache,
    batch: B::Batch,
    /// The residual stream.
    x: B::Activations,
    scratch: Scratch<B>,
}

impl<'m, B: Backend> Session<'m, B> {
    pub(crate) fn new(
        decoder: &'m Decoder<B>,
        cross_kv: Option<B::Cache>,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let SessionOptions { kv_cache, sequences, max_positions, total_positions, .. } = *options;
        let config = decoder.config();
        if max_positions > config.max_positions {
            return Err(Error::Input(format!(
                "{max_positions} positions asked for, but this model has only {}; shorten the text, the window or the number of new tokens",
                config.max_positions
            )));
        }
        let group = decoder.backend().group();
        group.map_or(Ok(()), |group| group.check_opens())?;
        let group = group.filter(|group| group.leads());
        let led = group.map(|group| Arc::new(Led { group: group.clone(), session: group.new_session() }));
        let _turn = Led::begin(led.as_ref(), |session| Step::Open { session, options: *options })?;
        // No forward can be larger than all sequences together, nor have more logits than rows.
        let max_rows = options.max_rows.min(sequences.saturating_mul(max_positions));
        let max_logits = options.max_logits.min(max_rows);
        let role = ActivationRole::Residual;
        let mut stages = Vec::new();
        for stage in decoder.stages() {
            let backend = &*stage.backend;
            let capacity = CacheCapacity { sequences, max_positions, total_positions };
            stages.push(StageState {
                cache: decoder.cache(stage, kv_cache, capacity)?,
                batch: backend.batch(BatchCapacity {
                    rows: max_rows,
                    segments: sequences,
                    selected: max_logits,
                })?,
                x: backend.activations(max_rows, config.hidden_size, role)?,
                scratch: block::scratch(backend, config, &stage.blocks, max_rows)?,
            });
        }
        let last = decoder.stages().len() - 1;
        let (narrow, narrow_out) = if decoder.is_projected() { (max_rows, max_logits) } else { (0, 0) };
        let (backend, head) = (decoder.backend(), decoder.head_backend());
        let selected = |backend: &B| backend.activations(max_logits, config.hidden_size, role);
        let handed_on = (decoder.head_stage() != last).then(|| selected(head)).transpose()?;
        Ok(Self {
            stages,
            cross_kv,
            narrow: backend.activations(narrow, config.embedding_size, role)?,
            narrow_out: head.activations(narrow_out, config.embedding_size, role)?,
            selected: selected(&decoder.stages()[last].backend)?,
            handed_on,
            logits: head.activations(max_logits, config.vocab_size, ActivationRole::Logits)?,
            host: Vec::new(),
            lengths: vec![0; sequences],
            expected: vec![0; sequences],
            segments: Vec::new(),
            led: led.clone(),
            options: SessionOptions { max_rows, max_logits, ..*options },
            decoder,
        })
    }

    /// Tokens that sequence `sequence` holds.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|length| *length == 0)
    }

    /// Bytes of the pages that hold keys and values now.
    pub fn cache_bytes(&self) -> usize {
        let cross_kv = self.cross_kv.as_ref().map_or(0, |kv| self.decoder.backend().cache_bytes(kv));
        let stages = self.decoder.stages().iter().zip(&self.stages);
        stages.map(|(stage, state)| stage.backend.cache_bytes(&state.cache)).sum::<usize>() + cross_kv
    }

    /// Pages of the KV cache that no sequence holds. On several devices each has as many.
    pub fn free_pages(&self) -> usize {
        self.page_tables(PageTables::free)
    }

    /// Pages of the KV cache.
    pub fn pages(&self) -> usize {
        self.page_tables(PageTables::pages)
    }

    /// Tokens of a page.
    pub fn page_positions(&self) -> usize {
        self.page_tables(PageTables::page_positions)
    }

    /// Free pages that a forward of `(sequence, tokens)` takes: new ones, and copies of those that a fork shares.
    pub fn pages_needed(&self, batch: &[(usize, usize)]) -> usize {
        let range = |&(sequence, tokens): &(usize, usize)| {
            let length = self.lengths[sequence];
            (sequence, length..length + tokens)
        };
        let ranges: Vec<_> = batch.iter().map(range).collect();
        self.page_tables(|tables| tables.needed(&ranges))
    }

    fn page_tables(&self, read: impl Fn(&PageTables) -> usize) -> usize {
        let mut found = 0;
        self.decoder.backend().page_tables(&self.stages[0].cache, &mut |tables| found = read(tables));
        found
    }

    /// The same operation on the cache of each backend.
    fn on_caches(
        &mut self,
        mut operation: impl FnMut(&B, &mut B::Cache) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let stages = self.decoder.stages().iter().zip(&mut self.stages);
        stages.into_iter().try_for_each(|(stage, state)| operation(&stage.backend, &mut state.cache))
    }

    /// The size it was made for.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Empties a sequence and gives its pages back.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<(), Error> {
        let led = self.led.clone();
        let _turn = Led::begin(led.as_ref(), |session| Step::Clear { session, sequence })?;
        self.lengths[sequence] = 0;
        self.expected[sequence] = 0;
        self.on_caches(|backend, cache| backend.release(cache, sequence))
    }

    /// Says that sequence `sequence` is to hold `tokens` tokens before any of its logits are of use: a prompt that several
    /// forwards compute. Rotary frequencies that depend on the length of a text follow it; without, each forward follows the
    /// length at its own end.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn expect(&mut self, sequence: usize, tokens: usize) {
        // A process that does not hear it has ended, which the next forward says.
        drop(Led::begin(self.led.as_ref(), |session| Step::Expect { session, sequence, tokens }));
        self.expected[sequence] = tokens;
    }

    /// Makes sequence `to` begin with the first `tokens` tokens of `from`: they share its pages, each until it writes to one.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such sequence, both are one, or `from` holds fewer tokens; of a model with recurrent states
    /// also when `tokens` is neither the end of `from` nor that of the forward before its last one.
    pub fn fork(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), Error> {
        let held = self.lengths.get(from).copied().unwrap_or(0);
        if from == to || to >= self.lengths.len() || tokens > held {
            return Err(Error::Input(format!(
                "sequence {to} of {} cannot begin with {tokens} tokens of sequence {from}, which holds {held}",
                self.lengths.len()
            )));
        }
        let led = self.led.clone();
        let _turn = Led::begin(led.as_ref(), |session| Step::Fork { session, from, to, tokens })?;
        self.on_caches(|backend, cache| backend.fork(cache, from, to, tokens))?;
        self.lengths[to] = tokens;
        Ok(())
    }

    /// Appends tokens to sequences, `(sequence, ids)` each, and computes their hidden states in one forward.
    ///
    /// # Errors
    /// When an id is not in the vocabulary, a sequence does not exist, stands twice or grows too long, no pages are free, or
    /// the forward has no or too many tokens. No sequence has grown then.
    pub fn forward(&mut self, batch: &[(usize, &[u32])]) -> Result<(), Error> {
        let rows = self.check(batch)?;
        let decoder = self.decoder;
        let led = self.led.clone();
        let _turn = Led::begin(led.as_ref(), |session| {
            let batch = batch.iter().map(|&(sequence, ids)| (sequence, ids.into())).collect();
            Step::Forward { session, batch }
        })?;
        let segments: Vec<Segment<'_>> = batch
            .iter()
            .map(|&(sequence, ids)| {
                let position = self.lengths[sequence];
                let length = self.expected[sequence].max(position + ids.len());
                Segment { sequence, position, ids, length }
            })
            .collect();
        let ranges: Vec<(usize, Range<usize>)> = segments
            .iter()
            .map(|segment| (segment.sequence, segment.position..segment.position + segment.ids.len()))
            .collect();
        self.on_caches(|backend, cache| backend.reserve(cache, &ranges))?;
        // Until this forward has succeeded there is none whose logits could be taken.
        self.segments.clear();
        let key = GraphKey { phase: Phase::Forward, rows, segments: segments.len(), selected: 0 };
        let Self { stages, cross_kv, narrow, .. } = self;
        for (stage, state) in decoder.stages().iter().zip(&mut *stages) {
            stage.backend.set_batch(&mut state.batch, &segments)?;
        }
        let mut before: Option<Handed<'_, B>> = None;
        for (stage, state) in decoder.stages().iter().zip(stages) {
            let backend = &*stage.backend;
            let StageState { cache, batch, x, scratch } = state;
            if let Some(Handed { backend: sender, x: residual, embedded }) = before {
                backend.receive(sender, residual, x)?;
                if let (Some(embedded), Some(shared)) = (embedded, &mut scratch.shared) {
                    backend.receive(sender, embedded, &mut shared.embedded)?;
                }
            }
            let at =
                Context { backend, config: decoder.config(), batch: &*batch, cross_kv: cross_kv.as_ref() };
            backend.run(key, batch, &mut || {
                if stage.first == 0 {
                    decoder.embed(batch, narrow, x)?;
                    decoder.begin(batch, x, &mut scratch.carried)?;
                    if let Some(shared) = &mut scratch.shared {
                        shared.embed(backend, x, decoder.config().hidden_size)?;
                    }
                }
                for (layer, block) in stage.blocks.iter().enumerate() {
                    block.forward(&at, (layer, cache), x, scratch)?;
                }
                if stage.first + stage.blocks.len() == decoder.config().layers {
                    decoder.end(x, &mut scratch.carried)?;
                }
                Ok(())
            })?;
            let embedded = scratch.shared.as_ref().map(|shared| &shared.embedded);
            before = Some(Handed { backend, x, embedded });
        }
        for segment in segments {
            self.lengths[segment.sequence] += segment.ids.len();
            self.segments.push(segment.ids.len());
        }
        Ok(())
    }

    /// The logits `f32 [selected, vocabulary]`, row-major, of tokens of the last forward.
    ///
    /// # Errors
    /// When a row was not in the last forward, or there are more than the session was made for.
    pub fn logits(&mut self, rows: &RowSelection) -> Result<&[f32], Error> {
        self.compute_logits(rows)?;
        self.read_logits()
    }

    /// The logits of the last [`compute_logits`](Self::compute_logits), `f32 [selected, vocabulary]`, row-major.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_logits(&mut self) -> Result<&[f32], Error> {
        self.decoder.head_backend().read(&self.logits, &mut self.host)
    }

    /// Chooses a token from each row of the last [`compute_logits`](Self::compute_logits), with one sampler a row. The logits
    /// stay on the device.
    ///
    /// # Errors
    /// When the number of samplers differs, or a row is NaN.
    pub fn choose(&mut self, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error> {
        self.decoder.head_backend().sample(&self.logits, samplers)
    }

    /// Chooses the next token of each segment of the last forward, with one sampler a segment. The logits stay on the device
    /// unless a sampler has rules.
    ///
    /// # Errors
    /// When the number of samplers differs, or the logits are NaN.
    pub fn sample(&mut self, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error> {
        if samplers.len() != self.segments.len() {
            let (samplers, segments) = (samplers.len(), self.segments.len());
            return Err(Error::Input(format!("{samplers} samplers for a forward of {segments} sequences")));
        }
        if samplers.iter().any(Sampler::has_rules) {
            let width = self.decoder.config().vocab_size;
            let rows = self.logits(&RowSelection::LastOfSegments)?.chunks_exact(width);
            return samplers.iter_mut().zip(rows).map(|(sampler, logits)| sampler.next(logits)).collect();
        }
        self.compute_logits(&RowSelection::LastOfSegments)?;
        self.choose(samplers)
    }

    /// Computes the logits of tokens of the last forward, which stay on the device, for [`choose`](Self::choose) and
    /// [`read_logits`](Self::read_logits).
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn compute_logits(&mut self, selection: &RowSelection) -> Result<(), Error> {
        let rows = self.rows(selection)?;
        let decoder = self.decoder;
        let led = self.led.clone();
        let _turn = Led::begin(led.as_ref(), |session| Step::Logits { session, rows: rows.clone() })?;
        let Self { stages, selected, handed_on, narrow_out, logits, .. } = self;
        let (Some(stage), Some(last)) = (decoder.stages().last(), stages.last_mut()) else {
            return Err(Error::Input("a decoder without blocks".to_owned()));
        };
        let backend = &*stage.backend;
        backend.set_selection(&mut last.batch, &rows)?;
        let key = GraphKey { phase: Phase::Logits, rows: 0, segments: 0, selected: rows.len() };
        let Some(handed_on) = handed_on else {
            return backend.run(key, &last.batch, &mut || {
                backend.gather(&last.batch, &last.x, selected)?;
                decoder.head(selected, narrow_out, logits)
            });
        };
        backend.run(key, &last.batch, &mut || backend.gather(&last.batch, &last.x, selected))?;
        let head = decoder.head_backend();
        head.receive(backend, selected, handed_on)?;
        let batch = &stages[decoder.head_stage()].batch;
        head.run(key, batch, &mut || decoder.head(handed_on, narrow_out, logits))
    }

    /// The selected rows, ascending.
    fn rows(&self, selection: &RowSelection) -> Result<Vec<usize>, Error> {
        let all: usize = self.segments.iter().sum();
        let rows: Vec<usize> = match selection {
            RowSelection::LastOfSegments => {
                let ends = self.segments.iter().scan(0, |end, rows| {
                    *end += rows;
                    Some(*end - 1)
                });
                ends.collect()
            }
            RowSelection::Range(range) if range.start > range.end || range.end > all => {
                return Err(Error::Input(format!(
                    "logits of rows {range:?} asked for; the last forward had {all}"
                )));
            }
            RowSelection::Range(range) => range.clone().collect(),
            RowSelection::Rows(rows) => {
                if rows.windows(2).any(|pair| pair[0] >= pair[1])
                    || rows.last().is_some_and(|last| *last >= all)
                {
                    return Err(Error::Input(format!(
                        "logits of rows {rows:?} asked for: expected ascending ones below {all}, those of the last forward"
                    )));
                }
                rows.clone()
            }
        };
        if rows.is_empty() {
            return Err(Error::Input(
                "logits of no rows: run a forward first, and select a row of it".to_owned(),
            ));
        }
        if rows.len() > self.options.max_logits {
            return Err(Error::Input(format!(
                "logits of {} rows asked for; this session was made for {}",
                rows.len(),
                self.options.max_logits
            )));
        }
        Ok(rows)
    }

    fn check(&self, batch: &[(usize, &[u32])]) -> Result<usize, Error> {
        let mut seen = vec![false; self.lengths.len()];
        for &(sequence, ids) in batch {
            let Some(length) = self.lengths.get(sequence) else {
                return Err(Error::Input(format!(
                    "sequence {sequence} of a session of {}",
                    self.lengths.len()
                )));
            };
            if std::mem::replace(&mut seen[sequence], true) {
                return Err(Error::Input(format!("sequence {sequence} stands twice in one forward")));
            }
            if length + ids.len() > self.options.max_positions {
                return Err(Error::Input(format!(
                    "sequence {sequence} would hold {} tokens; this session was made for {}",
                    length + ids.len(),
                    self.options.max_positions
                )));
            }
            self.decoder.check_ids(ids)?;
        }
        let rows = batch.iter().map(|(_, ids)| ids.len()).sum();
        if rows == 0 || rows > self.options.max_rows || batch.iter().any(|(_, ids)| ids.is_empty()) {
            return Err(Error::Input(format!(
                "a forward of {rows} tokens; this session takes 1 to {}, at least one for each sequence",
                self.options.max_rows
            )));
        }
        Ok(rows)
    }
}
