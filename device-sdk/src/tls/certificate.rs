//! Certificates: what of one is read (RFC 5280), and whether a chain of them leads from an authority of the device to a
//! server of this name, now.
//!
//! Only ECDSA with SHA-256 over P-256, which `embedded-tls` can do without allocation. Anything critical that is not
//! understood here, name constraints among it, is a reason to refuse. An authority of the device is trusted for what it
//! is; that it expires is not looked at, as nobody could tell a device in the field of another.

use super::der::{self, Der, Element};
use core::net::IpAddr;
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};

/// From the server's own certificate up to an authority of the device.
const CHAIN_MAX: usize = 4;
/// Clocks that are kept over a sleep run slow, and a certificate may be new.
const EARLY_MAX_S: u64 = 24 * 60 * 60;

const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
const ECDSA_SHA256: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
const EXTENDED_KEY_USAGE: &[u8] = b"\x55\x1d\x25";
const SERVER_AUTH: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x01";
const ANY_USAGE: &[u8] = b"\x55\x1d\x25\x00";
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// Why a certificate is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CertificateError {
    /// It is none, or holds what is not understood and has to be.
    Malformed,
    /// Its key or its signature is not ECDSA with SHA-256 over P-256.
    Algorithm,
    /// No authority of the device has signed it, nor one that such an authority has made one.
    Issuer,
    /// A signature is wrong.
    Signature,
    /// It is over.
    Expired,
    /// It begins later.
    NotYetValid,
    /// It is for another name.
    Name,
    /// It is not for servers: that of a device, for example.
    Usage,
}

/// What time it is, as far as the device knows. Seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Now {
    /// The gateway has said so, or a clock that it has set.
    At(u64),
    /// Nobody has said; it is after this.
    After(u64),
}

impl Now {
    /// The time of a clock that may not be set, in milliseconds, or else that it is after `floor_s`.
    pub fn from_clock(unix_ms: Option<u64>, floor_s: u64) -> Self {
        unix_ms.map_or(Now::After(floor_s), |ms| Now::At(ms / 1000))
    }
}

/// What is read of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Certificate<'a> {
    signed: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    from: u64,
    to: u64,
    /// A point of P-256.
    pub key: &'a [u8],
    pub is_authority: bool,
    /// Authorities that may stand below this one.
    below_max: Option<usize>,
    may_sign: bool,
    may_serve: bool,
    names: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// The certificate that these bytes are.
    pub fn read(bytes: &'a [u8]) -> Result<Self, CertificateError> {
        let mut reader = Der(bytes);
        let (signed, algorithm, signature) = parts(&mut reader).ok_or(CertificateError::Malformed)?;
        if !reader.is_empty() {
            return Err(CertificateError::Malformed);
        }
        if algorithm != ECDSA_SHA256 {
            return Err(CertificateError::Algorithm);
        }
        Self::body(signed, signature).ok_or(CertificateError::Malformed)?
    }

    fn body(signed: Element<'a>, signature: &'a [u8]) -> Option<Result<Self, CertificateError>> {
        let mut body = Der(signed.content);
        let version = Der(body.next(0xa0)?).next(der::INTEGER)?;
        body.next(der::INTEGER)?; // serial number
        let algorithm = body.sequence()?.next(der::OID)?;
        let issuer = body.next(der::SEQUENCE)?;
        let mut validity = body.sequence()?;
        let (from, to) = (der::time(validity.any()?)?, der::time(validity.any()?)?);
        let subject = body.next(der::SEQUENCE)?;
        let mut key_info = body.sequence()?;
        let mut key_algorithm = key_info.sequence()?;
        let (kind, curve) = (key_algorithm.next(der::OID)?, key_algorithm.any()?);
        let key = bits(key_info.next(der::BIT_STRING)?)?;
        if kind != EC_PUBLIC_KEY || curve.content != P256 || algorithm != ECDSA_SHA256 {
            return Some(Err(CertificateError::Algorithm));
        }
        body.option(0x81);
        body.option(0x82);
        let mut read = Certificate {
            signed: signed.whole,
            signature,
            issuer,
            subject,
            from,
            to,
            key,
            is_authority: false,
            below_max: None,
            may_sign: true,
            may_serve: true,
            names: &[],
        };
        if version == [2]
            && let Some(extensions) = body.option(0xa3)
        {
            let mut extensions = Der(extensions).sequence()?;
            while !extensions.is_empty() {
                read.extension(extensions.sequence()?)?;
            }
        }
        body.is_empty().then_some(Ok(read))
    }

    fn extension(&mut self, mut extension: Der<'a>) -> Option<()> {
        let id = extension.next(der::OID)?;
        let is_critical = extension.option(der::BOOLEAN).is_some_and(|value| value != [0]);
        let mut value = Der(extension.next(der::OCTET_STRING)?);
        match id {
            BASIC_CONSTRAINTS => {
                let mut constraints = value.sequence()?;
                self.is_authority = constraints.option(der::BOOLEAN).is_some_and(|value| value != [0]);
                if let Some(below) = constraints.option(der::INTEGER) {
                    self.below_max = Some(usize::from(*below.first().filter(|_| below.len() == 1)?));
                }
            }
            KEY_USAGE => {
                // Bit 5 is keyCertSign, bit 0 digitalSignature, both counted from the left.
                let usage = value.next(der::BIT_STRING)?.get(1).copied().unwrap_or(0);
                self.may_sign = usage & 0x04 != 0;
                self.may_serve &= usage & 0x80 != 0;
            }
            EXTENDED_KEY_USAGE => {
                let mut usages = value.sequence()?;
                let mut serves = false;
                while !usages.is_empty() {
                    let usage = usages.next(der::OID)?;
                    serves |= usage == SERVER_AUTH || usage == ANY_USAGE;
                }
                self.may_serve &= serves;
            }
            SUBJECT_ALT_NAME => self.names = value.next(der::SEQUENCE)?,
            _ if is_critical => return None,
            _ => {}
        }
        Some(())
    }

    /// Whether `issuer` has signed this one.
    fn is_signed_by(&self, issuer: &Certificate<'_>) -> Result<(), CertificateError> {
        let key = VerifyingKey::from_sec1_bytes(issuer.key).map_err(|_| CertificateError::Malformed)?;
        let signature = Signature::from_der(self.signature).map_err(|_| CertificateError::Signature)?;
        key.verify(self.signed, &signature).map_err(|_| CertificateError::Signature)
    }

    fn is_valid(&self, now: Now) -> Result<(), CertificateError> {
        match now {
            Now::At(now) | Now::After(now) if now > self.to => Err(CertificateError::Expired),
            Now::At(now) if now.saturating_add(EARLY_MAX_S) < self.from => Err(CertificateError::NotYetValid),
            _ => Ok(()),
        }
    }

    /// Whether it is for this name or address. Only alternative names count, as everywhere since RFC 6125.
    fn is_for(&self, name: &str) -> bool {
        let address = name.parse::<IpAddr>().ok();
        let mut names = Der(self.names);
        while let Some(entry) = names.any() {
            let is_it = match (address, entry.tag) {
                (None, DNS_NAME) => is_name(entry.content, name.as_bytes()),
                (Some(IpAddr::V4(address)), IP_ADDRESS) => entry.content == address.octets(),
                (Some(IpAddr::V6(address)), IP_ADDRESS) => entry.content == address.octets(),
                _ => false,
            };
            if is_it {
                return true;
            }
        }
        false
    }
}

/// What is signed, with which algorithm, and the signature.
fn parts<'a>(reader: &mut Der<'a>) -> Option<(Element<'a>, &'a [u8], &'a [u8])> {
    let mut certificate = reader.sequence()?;
    let signed = certificate.any().filter(|element| element.tag == der::SEQUENCE)?;
    let algorithm = certificate.sequence()?.next(der::OID)?;
    let signature = bits(certificate.next(der::BIT_STRING)?)?;
    certificate.is_empty().then_some((signed, algorithm, signature))
}

/// A bit string of whole bytes.
fn bits(content: &[u8]) -> Option<&[u8]> {
    content.split_first().filter(|(unused, _)| **unused == 0).map(|(_, bytes)| bytes)
}

/// Whether a name, or one with a star for its first label, is meant.
fn is_name(pattern: &[u8], name: &[u8]) -> bool {
    let Some(rest) = pattern.strip_prefix(b"*.") else { return pattern.eq_ignore_ascii_case(name) };
    let Some(dot) = name.iter().position(|byte| *byte == b'.') else { return false };
    dot > 0 && rest.contains(&b'.') && name.get(dot + 1..).is_some_and(|parent| parent.eq_ignore_ascii_case(rest))
}

/// Whether the first of these certificates is that of a server of this name, and one of `authorities` (certificates one
/// behind the other) says so, if need be through others of the chain. Gives its key.
pub fn verify<'c>(chain: &[&'c [u8]], authorities: &[u8], name: &str, now: Now) -> Result<&'c [u8], CertificateError> {
    let server = Certificate::read(chain.first().ok_or(CertificateError::Malformed)?)?;
    if !server.may_serve {
        return Err(CertificateError::Usage);
    }
    if !server.is_for(name) {
        return Err(CertificateError::Name);
    }
    let mut below = server;
    for depth in 0..CHAIN_MAX {
        below.is_valid(now)?;
        match signed_by_authority(&below, authorities, depth) {
            Err(CertificateError::Issuer) => {}
            other => return other.map(|()| server.key),
        }
        let issuer = chain.get(depth + 1).ok_or(CertificateError::Issuer)?;
        let issuer = Certificate::read(issuer)?;
        let may_sign = issuer.is_authority && issuer.may_sign && issuer.below_max.is_none_or(|max| depth <= max);
        if issuer.subject != below.issuer || !may_sign {
            return Err(CertificateError::Issuer);
        }
        below.is_signed_by(&issuer)?;
        below = issuer;
    }
    Err(CertificateError::Issuer)
}

/// Whether one of the authorities has signed it. `depth` certificates are below it.
fn signed_by_authority(below: &Certificate<'_>, authorities: &[u8], depth: usize) -> Result<(), CertificateError> {
    let mut outcome = Err(CertificateError::Issuer);
    let mut left = Der(authorities);
    while let Some(next) = left.any() {
        let Ok(authority) = Certificate::read(next.whole) else { continue };
        if authority.subject != below.issuer || authority.below_max.is_some_and(|max| depth > max) {
            continue;
        }
        // There may be two of the same name while one replaces the other.
        outcome = below.is_signed_by(&authority);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}
