//! Just enough DER to read certificates and keys: a walk over tags, lengths and contents (ITU-T X.690). Definite
//! lengths in their shortest form, up to what fits a certificate; everything else is `None`.

pub const BOOLEAN: u8 = 0x01;
pub const INTEGER: u8 = 0x02;
pub const BIT_STRING: u8 = 0x03;
pub const OCTET_STRING: u8 = 0x04;
pub const OID: u8 = 0x06;
pub const UTC_TIME: u8 = 0x17;
pub const GENERALIZED_TIME: u8 = 0x18;
pub const SEQUENCE: u8 = 0x30;

/// Elements one after another.
#[derive(Clone, Copy, Debug)]
pub struct Der<'a>(pub &'a [u8]);

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    /// With tag and length.
    pub whole: &'a [u8],
}

impl<'a> Der<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element, whatever it is.
    pub fn any(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (length, head) = match short {
            0..=0x7f => (usize::from(short), 2),
            0x81 => (usize::from(*rest.first().filter(|length| **length >= 0x80)?), 3),
            0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
            _ => return None,
        };
        if head == 4 && length < 0x100 {
            return None;
        }
        let (whole, rest) = self.0.split_at_checked(head + length)?;
        self.0 = rest;
        Some(Element { tag, content: whole.get(head..)?, whole })
    }

    /// The content of the next element, which has to be of this tag.
    pub fn next(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|element| element.tag == tag).map(|element| element.content)
    }

    /// As [`Der::next`] if the next element has this tag, else nothing is taken.
    pub fn option(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) { self.next(tag) } else { None }
    }

    /// The elements of the next sequence.
    pub fn sequence(&mut self) -> Option<Der<'a>> {
        self.next(SEQUENCE).map(Der)
    }
}

/// Seconds since 1970 [RFC 5280, section 4.1.2.5: always in UTC and with seconds].
pub fn time(element: Element<'_>) -> Option<u64> {
    let digits = element.content.strip_suffix(b"Z")?;
    let pair = |at: usize| -> Option<u64> {
        let [high, low] = *digits.get(at..at + 2)?.first_chunk::<2>()?;
        let digit = |byte: u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
        Some(digit(high)? * 10 + digit(low)?)
    };
    let (year, at) = match (element.tag, digits.len()) {
        (UTC_TIME, 12) => (pair(0).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        (GENERALIZED_TIME, 14) => (pair(0)? * 100 + pair(2)?, 4),
        _ => return None,
    };
    let (month, day) = (pair(at)?, pair(at + 2)?);
    let (hour, minute, second) = (pair(at + 4)?, pair(at + 6)?, pair(at + 8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if year < 1970 {
        return Some(0);
    }
    // Years that begin in March have their leap day last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (months * 153 + 2) / 5 + day - 1;
    Some(((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second)
}
