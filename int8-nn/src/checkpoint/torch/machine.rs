//! The pickle machine, restricted to opcodes that build tensors: a stack, a memo and a table of values. It can call nothing: a
//! global is one of [`Global`]'s rules or it is refused by name.
//!
//! Values are in one table and refer to each other by number, so neither deep nor circular data can exhaust the program's
//! stack; [`MAX_OPERATIONS`] bounds the memory.

use std::collections::HashMap;

use super::super::DType;
use super::globals::{self, Global};

/// Most opcodes of one pickle. Each adds at most a few dozen bytes, less than 1 GB in all. A tensor takes about 40, so this
/// suffices for 400,000 tensors a file, twenty times the largest models.
const MAX_OPERATIONS: usize = 1 << 24;

/// The most dimensions of a tensor, as in PyTorch.
pub(super) const MAX_DIMS: usize = 64;

/// Why a pickle is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is malformed, or has an opcode that builds no tensors: byte offset and reason.
    Malformed(usize, String),
    /// It refers to this global.
    Global(String),
}

/// A value. Strings are slices of the pickle; containers, storages and tensors are in the machine's table.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// `None`, and values that do not matter.
    Nothing,
    Bool,
    Int(i64),
    Text(&'a str),
    Global(Global),
    Node(usize),
}

#[derive(Debug)]
pub(super) enum Node<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
}

/// A file of the archive, as described by the pickle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    /// `None`: the length is in bytes, and the tensor has the dtype.
    pub(super) dtype: Option<DType>,
    pub(super) length: i64,
}

/// A view of a storage, as described by the pickle; only the number of dimensions is checked.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) dtype: DType,
    /// In elements.
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    /// In elements.
    pub(super) strides: Vec<i64>,
}

/// Runs the pickle; returns the table of values and the result.
pub(super) fn run(pickle: &[u8]) -> Result<(Vec<Node<'_>>, Value<'_>), Refusal> {
    let mut machine = Machine {
        pickle,
        at: 0,
        begin: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        nodes: Vec::new(),
        steps: 0,
    };
    let result = machine.run()?;
    Ok((machine.nodes, result))
}

/// The kind of a value, for messages.
pub(super) fn kind(nodes: &[Node<'_>], value: Value<'_>) -> &'static str {
    match value {
        Value::Nothing => "None",
        Value::Bool => "a bool",
        Value::Int(_) => "an integer",
        Value::Text(_) => "a string",
        Value::Global(_) => "a class or function",
        Value::Node(index) => match &nodes[index] {
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dict",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
        },
    }
}

struct Machine<'a> {
    pickle: &'a [u8],
    /// The next byte.
    at: usize,
    /// Offset of the current opcode, for messages.
    begin: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    nodes: Vec<Node<'a>>,
    steps: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value<'a>, Refusal> {
        loop {
            self.begin = self.at;
            self.spend(1)?;
            let [operation] = self.fixed()?;
            if operation == b'.' {
                let result = self.pop()?;
                return match self.stack.is_empty() {
                    true => Ok(result),
                    false => Err(self.malformed(format!("{} values are left at its end", self.stack.len()))),
                };
            }
            self.execute(operation)?;
        }
    }

    fn execute(&mut self, operation: u8) -> Result<(), Refusal> {
        match operation {
            // PROTO, FRAME
            0x80 => match self.fixed()? {
                [2..=5] => Ok(()),
                [version] => Err(self.malformed(format!("protocol {version}; expected 2 to 5"))),
            },
            0x95 => self.fixed::<8>().map(drop),
            // NONE, NEWTRUE, NEWFALSE, BINFLOAT
            b'N' => self.push(Value::Nothing),
            0x88 | 0x89 => self.push(Value::Bool),
            b'G' => {
                self.fixed::<8>()?;
                self.push(Value::Nothing)
            }
            // BININT, BININT1, BININT2, LONG1
            b'J' => {
                let bytes = self.fixed()?;
                self.push(Value::Int(i32::from_le_bytes(bytes).into()))
            }
            b'K' => {
                let [value] = self.fixed()?;
                self.push(Value::Int(value.into()))
            }
            b'M' => {
                let bytes = self.fixed()?;
                self.push(Value::Int(u16::from_le_bytes(bytes).into()))
            }
            0x8a => self.long(),
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; SHORT_BINSTRING, BINSTRING (Python 2)
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.fixed()?);
                self.text(length.into())
            }
            0x8c | b'U' => {
                let [length] = self.fixed()?;
                self.text(length.into())
            }
            0x8d => {
                let length = u64::from_le_bytes(self.fixed()?);
                self.text(length)
            }
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b')' => self.node(Node::Tuple(Vec::new())),
            b']' => self.node(Node::List(Vec::new())),
            b'}' => self.node(Node::Dict(Vec::new())),
            // TUPLE1, TUPLE2, TUPLE3, TUPLE, LIST
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(operation - 0x84))?;
                self.node(Node::Tuple(items))
            }
            b't' => {
                let items = self.pop_mark()?;
                self.node(Node::Tuple(items))
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.node(Node::List(items))
            }
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            // APPEND, APPENDS, SETITEM, SETITEMS, DICT
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set(&items)
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&items)
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.node(Node::Dict(Vec::new()))?;
                self.set(&items)
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let [key] = self.fixed()?;
                self.memoize(key.into())
            }
            b'r' => {
                let key = u32::from_le_bytes(self.fixed()?);
                self.memoize(key)
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).unwrap_or(u32::MAX);
                self.memoize(key)
            }
            b'h' => {
                let [key] = self.fixed()?;
                self.push_memo(key.into())
            }
            b'j' => {
                let key = u32::from_le_bytes(self.fixed()?);
                self.push_memo(key)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => match self.pop_many(2)?[..] {
                [Value::Text(module), Value::Text(name)] => self.global(module, name),
                _ => Err(self.malformed("a global whose name is no string")),
            },
            // BINPERSID, REDUCE, NEWOBJ, BUILD
            b'Q' => self.storage(),
            b'R' | 0x81 => self.reduce(),
            b'b' => self.build(),
            _ => Err(self.malformed(unknown(operation))),
        }
    }

    // ---- reading -----------------------------------------------------------------------------------------------------

    fn malformed(&self, reason: impl Into<String>) -> Refusal {
        Refusal::Malformed(self.begin, reason.into())
    }

    /// Counts work against [`MAX_OPERATIONS`].
    fn spend(&mut self, steps: usize) -> Result<(), Refusal> {
        self.steps += steps;
        if self.steps <= MAX_OPERATIONS {
            return Ok(());
        }
        Err(self
            .malformed(format!("more than {MAX_OPERATIONS} operations, beyond any checkpoint of tensors")))
    }

    fn slice(&mut self, length: u64) -> Result<&'a [u8], Refusal> {
        let rest = &self.pickle[self.at..];
        let slice = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let Some(slice) = slice else {
            return Err(self.malformed(format!("{length} bytes are to follow, {} do", rest.len())));
        };
        self.at += slice.len();
        Ok(slice)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        match self.pickle[self.at..].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None if self.begin == self.at => Err(self.malformed("it ends without STOP")),
            None => Err(self.malformed("it ends inside an operation")),
        }
    }

    fn utf8(&self, bytes: &'a [u8]) -> Result<&'a str, Refusal> {
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a string that is not UTF-8"))
    }

    /// A line without its end.
    fn line(&mut self) -> Result<&'a str, Refusal> {
        let rest = &self.pickle[self.at..];
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.malformed("a name without its end of line"));
        };
        self.at += end + 1;
        self.utf8(&rest[..end])
    }

    fn text(&mut self, length: u64) -> Result<(), Refusal> {
        let bytes = self.slice(length)?;
        let text = self.utf8(bytes)?;
        self.push(Value::Text(text))
    }

    /// A two's complement integer of up to 8 bytes.
    fn long(&mut self) -> Result<(), Refusal> {
        let [length] = self.fixed()?;
        let bytes = self.slice(length.into())?;
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        match wide.get_mut(..bytes.len()) {
            Some(low) => low.copy_from_slice(bytes),
            None => return Err(self.malformed(format!("an integer of {length} bytes"))),
        }
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    // ---- stack and memo ----------------------------------------------------------------------------------------------

    fn push(&mut self, value: Value<'a>) -> Result<(), Refusal> {
        self.stack.push(value);
        Ok(())
    }

    fn node(&mut self, node: Node<'a>) -> Result<(), Refusal> {
        self.nodes.push(node);
        self.push(Value::Node(self.nodes.len() - 1))
    }

    /// The height below which the stack belongs to an open mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>, Refusal> {
        match self.stack.last() {
            Some(top) if self.stack.len() > self.floor() => Ok(*top),
            _ => Err(self.malformed("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>, Refusal> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value<'a>>, Refusal> {
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= self.floor() => Ok(self.stack.split_off(height)),
            _ => Err(self.malformed("the stack is empty")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, Refusal> {
        match self.marks.pop() {
            // No opcode pops below the last mark, so the stack is at least as high.
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.malformed("no mark is open")),
        }
    }

    fn memoize(&mut self, key: u32) -> Result<(), Refusal> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn push_memo(&mut self, key: u32) -> Result<(), Refusal> {
        match self.memo.get(&key) {
            Some(&value) => self.push(value),
            None => Err(self.malformed(format!("memo entry {key} is read and was never written"))),
        }
    }

    // ---- containers --------------------------------------------------------------------------------------------------

    /// Puts items at the end of the list on top.
    fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), Refusal> {
        let top = self.top()?;
        if let Value::Node(index) = top
            && let Node::List(list) = &mut self.nodes[index]
        {
            list.extend(items);
            return Ok(());
        }
        Err(self.malformed(format!("an item for {}, which is no list", kind(&self.nodes, top))))
    }

    /// Puts `key, value, key, value, …` into the dict on top.
    fn set(&mut self, items: &[Value<'a>]) -> Result<(), Refusal> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.malformed("a key without its value"));
        }
        if let Value::Node(index) = top
            && let Node::Dict(dict) = &mut self.nodes[index]
        {
            dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
            return Ok(());
        }
        Err(self.malformed(format!("an item for {}, which is no dict", kind(&self.nodes, top))))
    }

    fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Node(index) => match &self.nodes[index] {
                Node::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    // ---- what builds tensors -----------------------------------------------------------------------------------------

    fn global(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
        match globals::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(Refusal::Global(format!("{module}.{name}"))),
        }
    }

    /// BINPERSID: `("storage", class, key, location, length)`.
    fn storage(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let storage = match self.tuple(id) {
            Some(
                &[Value::Text("storage"), Value::Global(class), Value::Text(key), _, Value::Int(length)],
            ) => match class {
                Global::Storage(dtype) => Some(Storage { key, dtype: Some(dtype), length }),
                Global::UntypedStorage => Some(Storage { key, dtype: None, length }),
                _ => None,
            },
            _ => None,
        };
        match storage {
            Some(storage) => self.node(Node::Storage(storage)),
            None => Err(self.malformed("a storage that is not described by class, key, place and length")),
        }
    }

    /// REDUCE and NEWOBJ: a rule and a tuple of arguments.
    fn reduce(&mut self) -> Result<(), Refusal> {
        let operands = self.pop_many(2)?;
        let &[Value::Global(global), arguments] = &operands[..] else {
            let what = operands.first().map_or("nothing", |&callee| kind(&self.nodes, callee));
            return Err(self.malformed(format!("a call of {what}")));
        };
        self.apply(global, arguments)
    }

    fn apply(&mut self, global: Global, arguments: Value<'a>) -> Result<(), Refusal> {
        let Some(arguments) = self.tuple(arguments) else {
            let what = kind(&self.nodes, arguments);
            return Err(self.malformed(format!("a call with {what} instead of a tuple of arguments")));
        };
        match (global, arguments) {
            (Global::OrderedDict, []) => self.node(Node::Dict(Vec::new())),
            (Global::OrderedDict, &[Value::Node(pairs)]) => self.dict_of(pairs),
            (Global::Size, &[sizes]) if self.tuple(sizes).is_some() => self.push(sizes),
            (Global::Tensor, &[storage, Value::Int(offset), shape, strides, ..]) => {
                self.tensor(storage, offset, shape, strides, None)
            }
            (
                Global::UntypedTensor,
                &[storage, Value::Int(offset), shape, strides, _, _, Value::Global(Global::DType(dtype)), ..],
            ) => self.tensor(storage, offset, shape, strides, Some(dtype)),
            (Global::Parameter, &[Value::Node(index), ..])
                if matches!(self.nodes[index], Node::Tensor(_)) =>
            {
                self.push(Value::Node(index))
            }
            (Global::FromType, &[Value::Global(rebuild), Value::Global(Global::Class), arguments, _])
                if matches!(rebuild, Global::Tensor | Global::UntypedTensor | Global::Parameter) =>
            {
                self.apply(rebuild, arguments)
            }
            (Global::Device, _) => self.push(Value::Nothing),
            _ => Err(self.malformed(format!("a call of {global:?} with arguments that do not belong to it"))),
        }
    }

    /// A dict of a list of pairs, as Python 2 writes an OrderedDict.
    fn dict_of(&mut self, pairs: usize) -> Result<(), Refusal> {
        let Node::List(pairs) = &self.nodes[pairs] else {
            return Err(self.malformed("an OrderedDict of something else than a list"));
        };
        let pair = |&value: &Value<'a>| match value {
            Value::Node(index) => match &self.nodes[index] {
                Node::List(pair) | Node::Tuple(pair) => match pair[..] {
                    [key, value] => Some((key, value)),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        let length = pairs.len();
        let dict = pairs.iter().map(pair).collect::<Option<Vec<_>>>();
        // One opcode may copy a long list, repeatedly.
        self.spend(length)?;
        match dict {
            Some(dict) => self.node(Node::Dict(dict)),
            None => Err(self.malformed("an OrderedDict of something else than pairs")),
        }
    }

    fn tensor(
        &mut self,
        storage: Value<'a>,
        offset: i64,
        shape: Value<'a>,
        strides: Value<'a>,
        dtype: Option<DType>,
    ) -> Result<(), Refusal> {
        let storage = match storage {
            Value::Node(index) => match &self.nodes[index] {
                Node::Storage(storage) => *storage,
                _ => return Err(self.malformed("a tensor of something else than a storage")),
            },
            _ => return Err(self.malformed("a tensor of something else than a storage")),
        };
        let Some(dtype) = dtype.or(storage.dtype) else {
            return Err(self.malformed("a tensor whose element type is not said"));
        };
        let (shape, strides) = (self.integers(shape)?, self.integers(strides)?);
        self.node(Node::Tensor(Tensor { storage, dtype, offset, shape, strides }))
    }

    /// A tuple of at most [`MAX_DIMS`] integers.
    fn integers(&mut self, value: Value<'a>) -> Result<Vec<i64>, Refusal> {
        let Some(items) = self.tuple(value) else {
            return Err(self.malformed(format!("{} instead of a shape", kind(&self.nodes, value))));
        };
        if items.len() > MAX_DIMS {
            return Err(self.malformed(format!("{} dimensions; at most {MAX_DIMS}", items.len())));
        }
        let integers: Option<Vec<_>> = items
            .iter()
            .map(|&item| match item {
                Value::Int(value) => Some(value),
                _ => None,
            })
            .collect();
        integers.ok_or_else(|| self.malformed("a shape or stride that is no integer"))
    }

    /// BUILD: attributes of a dict (`_metadata`) or of a tensor; ignored.
    fn build(&mut self) -> Result<(), Refusal> {
        self.pop()?;
        let top = self.top()?;
        match top {
            Value::Node(index) if matches!(self.nodes[index], Node::Dict(_) | Node::Tensor(_)) => Ok(()),
            _ => Err(self.malformed(format!("a state for {}", kind(&self.nodes, top)))),
        }
    }
}

/// The name of a refused opcode, for messages.
fn unknown(operation: u8) -> String {
    let name = match operation {
        b'i' => "INST",
        b'o' => "OBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'B' | b'C' | 0x8e | 0x96 => "BINBYTES",
        0x8f..=0x91 => "a set",
        0x97 | 0x98 => "a buffer",
        b'S' | b'V' | b'I' | b'L' | b'F' | b'p' | b'g' => "an operation of protocol 0",
        0x8b => "LONG4",
        _ => "unknown",
    };
    format!("operation {operation:#04x} ({name}), which no checkpoint of tensors needs")
}
