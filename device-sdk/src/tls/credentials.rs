//! Who the device is and whom it trusts: one PEM file, baked into the firmware or read from flash.
//!
//! ```sh
//! cat ca.pem pump-7.pem pump-7.key > device.pem
//! ```
//!
//! Certificates of authorities are whom it trusts; the one that is not of an authority is its own, and the key belongs
//! to it. On the device the file is decoded once into a buffer of three quarters of its length.

use super::certificate::{Certificate, CertificateError};
use super::der::{self, Der};

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const KEY_BYTES: usize = 32;

/// Whom the device trusts, and its own certificate and key if it has one.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    authorities: &'a [u8],
    own: Option<(&'a [u8], &'a [u8])>,
}

/// Why a file is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CredentialsError {
    /// It is not PEM.
    Pem,
    /// The buffer is too short for it.
    Memory,
    /// A certificate in it is of no use, for this reason.
    Certificate(CertificateError),
    /// The key in it is not a P-256 key without a password.
    Key,
    /// There is no certificate of an authority in it.
    NoAuthority,
    /// There is a certificate without its key, a key without its certificate, or two of them.
    Unpaired,
}

impl<'a> Credentials<'a> {
    /// From what is already decoded: certificates of authorities one behind the other, and the device's certificate and
    /// the 32 bytes of its key.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_der(authorities: &'a [u8], own: Option<(&'a [u8], &'a [u8])>) -> Result<Self, CredentialsError> {
        let mut left = Der(authorities);
        while !left.is_empty() {
            let next = left.any().ok_or(CredentialsError::Certificate(CertificateError::Malformed))?;
            Certificate::read(next.whole).map_err(CredentialsError::Certificate)?;
        }
        if authorities.is_empty() {
            return Err(CredentialsError::NoAuthority);
        }
        if let Some((certificate, key)) = own {
            Certificate::read(certificate).map_err(CredentialsError::Certificate)?;
            p256::SecretKey::from_slice(key).map_err(|_| CredentialsError::Key)?;
        }
        Ok(Credentials { authorities, own })
    }

    /// From a PEM file. `memory` is at least three quarters as long.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_pem(pem: &[u8], memory: &'a mut [u8]) -> Result<Self, CredentialsError> {
        let mut rest = &mut *memory;
        let mut blocks = Blocks(pem);
        let mut own = (None, None);
        // Authorities gather at the front, so they have to be one behind the other; what is not of one is moved behind.
        let mut authorities = 0;
        while let Some((label, text)) = blocks.next()? {
            let length = decode(text, rest.get_mut(authorities..).unwrap_or_default())?;
            let decoded = rest.get(authorities..authorities + length).ok_or(CredentialsError::Memory)?;
            let place = match label {
                b"CERTIFICATE" => {
                    let read = Certificate::read(decoded).map_err(CredentialsError::Certificate)?;
                    if read.is_authority {
                        authorities += length;
                        continue;
                    }
                    &mut own.0
                }
                b"PRIVATE KEY" | b"EC PRIVATE KEY" => &mut own.1,
                b"EC PARAMETERS" => continue,
                _ => return Err(CredentialsError::Pem),
            };
            if place.is_some() {
                return Err(CredentialsError::Unpaired);
            }
            rest.get_mut(authorities..).unwrap_or_default().rotate_left(length);
            let keep = rest.len().checked_sub(length).ok_or(CredentialsError::Memory)?;
            let (before, kept) = rest.split_at_mut_checked(keep).ok_or(CredentialsError::Memory)?;
            (*place, rest) = (Some(&*kept), before);
        }
        let own = match own {
            (Some(certificate), Some(key)) => Some((certificate, scalar(key).ok_or(CredentialsError::Key)?)),
            (None, None) => None,
            _ => return Err(CredentialsError::Unpaired),
        };
        Self::from_der(rest.get(..authorities).unwrap_or_default(), own)
    }

    pub(crate) fn authorities(&self) -> &'a [u8] {
        self.authorities
    }

    pub(crate) fn certificate(&self) -> Option<&'a [u8]> {
        self.own.map(|(certificate, _)| certificate)
    }

    pub(crate) fn key(&self) -> Option<&'a [u8]> {
        self.own.map(|(_, key)| key)
    }
}

impl core::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Credentials").field("has_own", &self.own.is_some()).finish_non_exhaustive()
    }
}

/// The private number of a key in PKCS #8 (RFC 5958) or SEC 1 (RFC 5915).
fn scalar(bytes: &[u8]) -> Option<&[u8]> {
    let mut outer = Der(bytes).sequence()?;
    outer.next(der::INTEGER)?;
    if let Some(algorithm) = outer.option(der::SEQUENCE) {
        if Der(algorithm).next(der::OID)? != EC_PUBLIC_KEY {
            return None;
        }
        return scalar(outer.next(der::OCTET_STRING)?);
    }
    outer.next(der::OCTET_STRING).filter(|key| key.len() == KEY_BYTES)
}

/// Label and text of a block.
type Block<'p> = (&'p [u8], &'p [u8]);

/// The blocks of a PEM file (RFC 7468). What is between them does not count.
struct Blocks<'p>(&'p [u8]);

impl<'p> Blocks<'p> {
    fn next(&mut self) -> Result<Option<Block<'p>>, CredentialsError> {
        let Some(begin) = find(self.0, BEGIN) else { return Ok(None) };
        let (label, after) = label(self.0.get(begin + BEGIN.len()..)).ok_or(CredentialsError::Pem)?;
        let end = find(after, END).ok_or(CredentialsError::Pem)?;
        let (text, after) = after.split_at_checked(end).ok_or(CredentialsError::Pem)?;
        let (ended, after) = self::label(after.get(END.len()..)).ok_or(CredentialsError::Pem)?;
        self.0 = after;
        if ended == label { Ok(Some((label, text))) } else { Err(CredentialsError::Pem) }
    }
}

/// Up to the dashes, and what follows them.
fn label(text: Option<&[u8]>) -> Option<(&[u8], &[u8])> {
    let dashes = find(text?, b"-----")?;
    Some((text?.get(..dashes)?, text?.get(dashes + 5..)?))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Decodes base64 with whitespace in it; its length.
fn decode(text: &[u8], into: &mut [u8]) -> Result<usize, CredentialsError> {
    let (mut bits, mut count, mut length) = (0_u32, 0, 0);
    let characters = text.iter().filter(|byte| !byte.is_ascii_whitespace());
    for &byte in characters.take_while(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(CredentialsError::Pem),
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            *into.get_mut(length).ok_or(CredentialsError::Memory)? = (bits >> count) as u8;
            length += 1;
        }
    }
    Ok(length)
}
