//! Reading a SentencePiece model (`tokenizer.model`, `spiece.model`): the fields of its protocol-buffer message that a
//! tokenizer is made from.

/// A SentencePiece model.
#[derive(Debug, PartialEq)]
pub(super) struct Model {
    pub(super) pieces: Vec<Piece>,
    pub(super) is_unigram: bool,
    pub(super) byte_fallback: bool,
    pub(super) unk_id: usize,
    pub(super) unk_piece: String,
    pub(super) charsmap: Vec<u8>,
    pub(super) dummy_prefix: bool,
    pub(super) removes_extra_spaces: bool,
    pub(super) escapes_spaces: bool,
}

/// An entry of its vocabulary.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// The type of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Control,
    UserDefined,
    /// Unknown, unused, byte.
    Other,
}

/// Longest piece, in bytes: SentencePiece's own have 16 characters, a user's symbols a few more.
const LONGEST_PIECE: usize = 512;

/// Bytes of all pieces; the largest models have 3 MB.
const MOST_TEXT: usize = 16 << 20;

impl Model {
    /// Parses the message.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence about the file.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            is_unigram: true,
            byte_fallback: false,
            unk_id: 0,
            unk_piece: "<unk>".to_owned(),
            charsmap: Vec::new(),
            dummy_prefix: true,
            removes_extra_spaces: true,
            escapes_spaces: true,
        };
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Field::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err("is no SentencePiece model: it has no pieces".to_owned());
        }
        if let Some(piece) = model.pieces.iter().find(|piece| piece.text.len() > LONGEST_PIECE) {
            let length = piece.text.len();
            return Err(format!("has a piece of {length} bytes; at most {LONGEST_PIECE} are read"));
        }
        if model.pieces.iter().map(|piece| piece.text.len()).sum::<usize>() > MOST_TEXT {
            return Err(format!("has more than {MOST_TEXT} bytes of pieces"));
        }
        if model.unk_id >= model.pieces.len() {
            let (id, pieces) = (model.unk_id, model.pieces.len());
            return Err(format!("names piece {id} for what is unknown; there are {pieces} pieces"));
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (3, Field::Number(kind)) => self.is_unigram = kind == 1,
                (35, Field::Number(flag)) => self.byte_fallback = flag != 0,
                (40, Field::Number(id)) => self.unk_id = usize::try_from(id).unwrap_or(usize::MAX),
                (45, Field::Bytes(piece)) => self.unk_piece = text(piece)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (2, Field::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Field::Number(flag)) => self.dummy_prefix = flag != 0,
                (4, Field::Number(flag)) => self.removes_extra_spaces = flag != 0,
                (5, Field::Number(flag)) => self.escapes_spaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: Kind::Normal };
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match (number, field) {
                (1, Field::Bytes(bytes)) => piece.text = text(bytes)?,
                (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                (3, Field::Number(kind)) => {
                    piece.kind = match kind {
                        1 => Kind::Normal,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        _ => Kind::Other,
                    };
                }
                _ => {}
            }
        }
        if piece.score.is_nan() {
            return Err(format!("gives the piece {:?} no number for a score", piece.text));
        }
        Ok(piece)
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "holds a piece that is not UTF-8".to_owned())
}

/// The fields of a message that are left.
struct Fields<'a>(&'a [u8]);

/// The value of a field.
enum Field<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// Eight bytes, of which no field is of use here.
    Fixed64,
}

const ENDS: &str = "is no SentencePiece model, or is cut short";

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let length = usize::try_from(self.number()?).map_err(|_| ENDS.to_owned())?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte)))
            }
            _ => return Err(ENDS.to_owned()),
        };
        Ok(Some((tag >> 3, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ENDS)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A variable-length integer: seven bits a byte, the lowest first.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(ENDS.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `number: bytes`, as a field of a message.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).expect("short");
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let mut piece = field(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, kind]);
        field(1, &piece)
    }

    #[test]
    fn a_message_is_read_and_cut_ones_are_refused() {
        let mut bytes = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("▁a", -1.5, 1)].concat();
        // Model type BPE; byte fallback has a number of two bytes.
        bytes.extend(field(2, &[3 << 3, 2, 0x98, 0x02, 1]));
        bytes.extend(field(3, &[4 << 3, 0]));
        let model = Model::read(&bytes).expect("a model");
        assert_eq!(model.pieces.len(), 3);
        assert_eq!(model.pieces[1].kind, Kind::Control);
        assert_eq!(model.pieces[2], Piece { text: "▁a".to_owned(), score: -1.5, kind: Kind::Normal });
        assert!(
            !model.is_unigram && model.byte_fallback && !model.removes_extra_spaces && model.dummy_prefix
        );
        for end in 1..bytes.len() {
            // A cut between two fields leaves a message that is whole.
            let _ = Model::read(&bytes[..end]);
        }
        assert!(Model::read(&bytes[..bytes.len() - 1]).is_err());
        assert!(Model::read(b"").is_err());
        assert!(Model::read(&[0xFF; 12]).is_err());
    }
}
