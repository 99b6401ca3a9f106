//! Messages of PostgreSQL's protocol 3.0 as a server reads and writes them (manual, "Message Formats").

use crate::server::problem::Problem;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a client says once it is let in. Texts are UTF-8; anything else is malformed.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Statements, to be run at once.
    Query(String),
    /// A statement to be kept under a name.
    Parse {
        /// Its name; the unnamed one is replaced by the next.
        name: String,
        /// Its text.
        sql: String,
        /// Types of its parameters by OID, as far as the client says; 0 is unknown.
        types: Vec<u32>,
    },
    /// A statement with values.
    Bind {
        /// Name of the portal it makes.
        portal: String,
        /// Name of the statement.
        statement: String,
        /// One for all values, or one for each, or none for text.
        formats: Vec<i16>,
        /// The values; `None` is NULL.
        values: Vec<Option<Bytes>>,
        /// The same for the columns of the answer.
        results: Vec<i16>,
    },
    /// What does it take, what does it give?
    Describe(Named),
    /// Run a portal.
    Execute {
        /// Which.
        portal: String,
        /// At most so many rows; 0 is all.
        rows: u32,
    },
    /// Forget.
    Close(Named),
    /// Send what there is.
    Flush,
    /// The end of a group of messages, and of what an error skips.
    Sync,
    /// The end.
    Terminate,
    /// An answer to a question of the authentication.
    Password(Bytes),
    /// Something of a COPY, of which there is none here; or a function call.
    Other(u8),
}

/// A prepared statement or a portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A statement.
    Statement(String),
    /// A portal.
    Portal(String),
}

/// Bytes that are no message. The connection cannot be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message of type {:?}", char::from(*.0))]
pub struct Malformed(pub u8);

/// The message of this type with this body. Any bytes give a message or an error.
pub fn decode(tag: u8, body: Bytes) -> Result<Message, Malformed> {
    let mut reader = Reader(body);
    let message = message(tag, &mut reader).ok_or(Malformed(tag))?;
    if reader.0.is_empty() { Ok(message) } else { Err(Malformed(tag)) }
}

fn message(tag: u8, body: &mut Reader) -> Option<Message> {
    Some(match tag {
        b'Q' => Message::Query(body.text()?),
        b'P' => Message::Parse { name: body.text()?, sql: body.text()?, types: body.list(Reader::u32)? },
        b'B' => Message::Bind {
            portal: body.text()?,
            statement: body.text()?,
            formats: body.list(Reader::i16)?,
            values: body.list(Reader::value)?,
            results: body.list(Reader::i16)?,
        },
        b'D' => Message::Describe(body.named()?),
        b'C' => Message::Close(body.named()?),
        b'E' => Message::Execute { portal: body.text()?, rows: body.u32()? },
        b'H' => Message::Flush,
        b'S' => Message::Sync,
        b'X' => Message::Terminate,
        b'p' => Message::Password(body.rest()),
        b'd' | b'c' | b'f' | b'F' => {
            body.rest();
            Message::Other(tag)
        }
        _ => return None,
    })
}

struct Reader(Bytes);

impl Reader {
    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(text.into()).ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn i16(&mut self) -> Option<i16> {
        self.0.try_get_i16().ok()
    }

    fn value(&mut self) -> Option<Option<Bytes>> {
        let length = self.0.try_get_i32().ok()?;
        if length == -1 {
            return Some(None);
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len())?;
        Some(Some(self.0.split_to(length)))
    }

    /// Every element has bytes of its own, so a length that lies costs nothing.
    fn list<T>(&mut self, each: impl Fn(&mut Reader) -> Option<T>) -> Option<Vec<T>> {
        let count = self.0.try_get_u16().ok()?;
        (0..count).map(|_| each(self)).collect()
    }

    fn named(&mut self) -> Option<Named> {
        match self.0.try_get_u8().ok()? {
            b'S' => self.text().map(Named::Statement),
            b'P' => self.text().map(Named::Portal),
            _ => None,
        }
    }

    fn rest(&mut self) -> Bytes {
        self.0.split_to(self.0.len())
    }
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// OID of its type.
    pub oid: u32,
    /// Bytes of the type; -1 where they vary.
    pub size: i16,
    /// 0 is text, 1 binary.
    pub format: i16,
}

/// Messages to a client, until they are sent.
#[derive(Default)]
pub struct Output(pub BytesMut);

impl Output {
    /// One message: its length is filled in when it is written.
    fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        self.0.put_u8(tag);
        let start = self.0.len();
        self.0.put_u32(0);
        body(&mut self.0);
        let length = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// A step of the authentication: 0 is that it succeeded.
    pub fn authentication(&mut self, step: u32, body: &[u8]) {
        self.message(b'R', |out| {
            out.put_u32(step);
            out.put_slice(body);
        });
    }

    /// The version that is spoken, and extensions that are not.
    pub fn negotiate(&mut self, version: u32, unknown: &[&String]) {
        self.message(b'v', |out| {
            out.put_u32(version);
            out.put_u32(unknown.len() as u32);
            unknown.iter().for_each(|name| put_text(out, name));
        });
    }

    /// A setting that clients want to know.
    pub fn parameter_status(&mut self, name: &str, value: &str) {
        self.message(b'S', |out| {
            put_text(out, name);
            put_text(out, value);
        });
    }

    /// What a cancellation must say.
    pub fn backend_key(&mut self, process: u32, secret: u32) {
        self.message(b'K', |out| {
            out.put_u32(process);
            out.put_u32(secret);
        });
    }

    /// The next statement can come. `I` idle, `T` in a transaction, `E` in one that failed.
    pub fn ready(&mut self, status: u8) {
        self.message(b'Z', |out| out.put_u8(status));
    }

    /// A message without content: `1` parsed, `2` bound, `3` closed, `n` no columns, `s` more rows, `I` no statement.
    pub fn empty(&mut self, tag: u8) {
        self.message(tag, |_| ());
    }

    /// A statement is done.
    pub fn complete(&mut self, tag: &str) {
        self.message(b'C', |out| put_text(out, tag));
    }

    /// Types of a statement's parameters.
    pub fn parameters(&mut self, types: &[u32]) {
        self.message(b't', |out| {
            out.put_u16(types.len() as u16);
            types.iter().for_each(|oid| out.put_u32(*oid));
        });
    }

    /// Columns of an answer.
    pub fn fields(&mut self, fields: &[Field]) {
        self.message(b'T', |out| {
            out.put_u16(fields.len() as u16);
            for field in fields {
                put_text(out, &field.name);
                out.put_u32(0);
                out.put_u16(0);
                out.put_u32(field.oid);
                out.put_i16(field.size);
                out.put_i32(-1);
                out.put_i16(field.format);
            }
        });
    }

    /// A row; `put` writes a value, or says that it is NULL.
    pub fn row(&mut self, columns: usize, mut put: impl FnMut(usize, &mut BytesMut) -> bool) {
        self.message(b'D', |out| {
            out.put_u16(columns as u16);
            for at in 0..columns {
                let start = out.len();
                out.put_i32(-1);
                if put(at, out) {
                    let length = (out.len() - start - 4) as u32;
                    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
        });
    }

    /// An error. `severity` is ERROR or FATAL.
    pub fn error(&mut self, severity: &str, problem: &Problem) {
        self.message(b'E', |out| {
            let mut field = |tag: u8, text: &str| {
                out.put_u8(tag);
                put_text(out, text);
            };
            field(b'S', severity);
            field(b'V', severity);
            field(b'C', problem.kind.sqlstate);
            field(b'M', &problem.detail);
            field(b'D', &format!("{}: {}", problem.kind.code, problem.kind.title));
            field(b'H', problem.what_to_do());
            if let Some(position) = problem.position {
                field(b'P', &position.to_string());
            }
            out.put_u8(0);
        });
    }
}

/// A text with its end. One with a zero byte inside would be two.
fn put_text(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_broken_ones_refused() {
        let read = |tag, body: &'static [u8]| decode(tag, Bytes::from_static(body));
        assert_eq!(read(b'Q', b"SELECT 1\0"), Ok(Message::Query("SELECT 1".into())));
        let parse = Message::Parse { name: "s".into(), sql: "x".into(), types: vec![23] };
        assert_eq!(read(b'P', b"s\0x\0\0\x01\0\0\0\x17"), Ok(parse));
        let bind = Message::Bind {
            portal: String::new(),
            statement: String::new(),
            formats: vec![1],
            values: vec![None, Some(Bytes::from_static(b"ab"))],
            results: vec![],
        };
        assert_eq!(read(b'B', b"\0\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x02ab\0\0"), Ok(bind));
        assert_eq!(read(b'C', b"Pc\0"), Ok(Message::Close(Named::Portal("c".into()))));
        for (tag, body) in [
            (b'Q', &b"no end"[..]),
            (b'Q', b"\xff\0"),
            (b'Q', b"x\0more"),
            (b'B', b"\0\0\0\0\0\x01\0\0\0\x09ab\0\0"),
            (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
            (b'P', b"s\0x\0\xff\xff"),
            (b'D', b"X\0"),
            (b'!', b""),
        ] {
            assert_eq!(decode(tag, Bytes::from_static(body)), Err(Malformed(tag)), "{body:?}");
        }
    }
}
