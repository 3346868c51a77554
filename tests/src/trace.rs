//! System calls of the real binary, as strace writes them: the proof of promise P1 that no kill can give.
//!
//! A line of the trace is the moment strace saw something, and strace sees one thing at a time. A call is one line when
//! nothing happened between its start and its end, and two (`<unfinished ...>`, `resumed`) otherwise. So line numbers order
//! starts and ends of calls of all threads.

use std::collections::HashMap;

/// Options of strace that make a trace this module reads; `-o FILE` and the command follow.
pub const STRACE: [&str; 8] = ["strace", "-D", "-f", "-ttt", "-yy", "-s", "70000", "--seccomp-bpf"];

/// The calls that carry bytes in and out, and the ones that make them durable.
pub const CALLS: &str = "trace=fsync,fdatasync,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,read,readv,recvfrom,recvmsg,sync_file_range";

#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// What the first argument's descriptor is: a path, or `TCP:[127.0.0.1:1883->127.0.0.1:40000]`.
    pub on: String,
    /// All strings among the arguments, one after the other: what was written, sent or read.
    pub bytes: Vec<u8>,
    pub result: i64,
    /// Line where it started, and where it ended.
    pub start: usize,
    pub end: usize,
}

impl Call {
    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
    }

    /// A write to a file (not to a socket).
    pub fn is_file_write(&self) -> bool {
        matches!(self.name.as_str(), "pwrite64" | "pwritev" | "pwritev2" | "write" | "writev")
            && self.on.starts_with('/')
    }

    pub fn is_send(&self) -> bool {
        matches!(self.name.as_str(), "sendto" | "sendmsg" | "write" | "writev") && self.on.starts_with("TCP")
    }

    pub fn is_receive(&self) -> bool {
        matches!(self.name.as_str(), "recvfrom" | "recvmsg" | "read" | "readv") && self.on.starts_with("TCP")
    }

    pub fn contains(&self, needle: &[u8]) -> bool {
        self.bytes.windows(needle.len().max(1)).any(|window| window == needle)
    }
}

/// All finished calls of a trace, in the order of their ends.
pub fn parse(text: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((_time, what)) = rest.trim_start().split_once(' ') else { continue };
        if let Some(begun) = what.strip_suffix("<unfinished ...>") {
            open.insert(thread, (number, begun.trim_end()));
        } else if let Some(resumed) = what.strip_prefix("<... ") {
            let Some((start, begun)) = open.remove(thread) else { continue };
            let Some((_, tail)) = resumed.split_once("resumed>") else { continue };
            calls.extend(call(&format!("{begun}{tail}"), start, number));
        } else {
            calls.extend(call(what, number, number));
        }
    }
    calls
}

/// `name(args) = result`, and whatever follows the result.
fn call(text: &str, start: usize, end: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (args, result) = rest.rsplit_once(" = ")?;
    let result = result.split(' ').next()?.parse().ok()?;
    let first = args.split(", ").next().unwrap_or_default();
    let on = first.split_once('<').and_then(|(_, on)| on.rsplit_once('>')).map_or("", |(on, _)| on);
    Some(Call { name: name.to_owned(), on: on.to_owned(), bytes: strings(args), result, start, end })
}

/// The quoted strings of an argument list, unescaped, joined.
fn strings(args: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = args.as_bytes().iter().copied().peekable();
    let mut quoted = false;
    while let Some(byte) = rest.next() {
        match (quoted, byte) {
            (_, b'"') => quoted = !quoted,
            (false, _) => {}
            (true, b'\\') => bytes.extend(escape(&mut rest)),
            (true, plain) => bytes.push(plain),
        }
    }
    bytes
}

fn escape(rest: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> Option<u8> {
    let digits = |rest: &mut std::iter::Peekable<_>, most: usize, radix: u32, first: Option<u8>| {
        let mut value = first.map_or(0, |digit| u32::from(digit - b'0'));
        for _ in 0..most {
            let Some(digit) = rest.peek().and_then(|byte: &u8| char::from(*byte).to_digit(radix)) else { break };
            value = value * radix + digit;
            rest.next();
        }
        value as u8
    };
    Some(match rest.next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'f' => 0x0c,
        b'x' => digits(rest, 2, 16, None),
        octal @ b'0'..=b'7' => digits(rest, 2, 8, Some(octal)),
        itself => itself,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_with_its_interruptions() {
        let text = concat!(
            "10 1.000001 fdatasync(5</d/journal/0> <unfinished ...>\n",
            "11 1.000002 recvfrom(9<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"2\\7\\0\\1a\\\"\\x41\", 100, 0, NULL, NULL) = 7\n",
            "10 1.000003 <... fdatasync resumed>) = 0\n",
            "11 1.000004 writev(9<TCP:[127.0.0.1:1->127.0.0.1:2]>, [{iov_base=\"@\\2\", iov_len=2}, {iov_base=\"\\0\\0011\", iov_len=3}], 2) = 5\n",
            "11 1.000005 fdatasync(5</d/journal/0>) = -1 EIO (Input/output error) (INJECTED)\n",
            "12 1.000006 +++ exited with 0 +++\n",
        );
        let calls = parse(text);
        let names: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.start, call.end, call.result)).collect();
        assert_eq!(
            names,
            [("recvfrom", 1, 1, 7), ("fdatasync", 0, 2, 0), ("writev", 3, 3, 5), ("fdatasync", 4, 4, -1)]
        );
        assert_eq!(calls[0].bytes, b"2\x07\x00\x01a\"A");
        assert_eq!(calls[2].bytes, b"@\x02\x00\x011");
        assert!(calls[1].is_sync() && calls[0].is_receive() && calls[2].is_send());
        assert_eq!(calls[1].on, "/d/journal/0");
    }
}
