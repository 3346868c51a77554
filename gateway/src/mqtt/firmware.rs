//! Firmware for devices: one image a device, a file under the data directory, offered with each greeting and read part by part
//! as the device asks. The gateway believes nothing of it: the device checks the signature.
//!
//! ```text
//! DATA/firmware/{xxh3-128 of the client id}.fw    "HWFW1\n" | length of the head u32 LE | head, JSON | image
//! ```
//! A file is whole or not there: it is written aside, synced, and renamed.

use bytes::Bytes;
use headwater_wire::firmware::{Offer, PART_BYTES_MAX, PART_HEAD_BYTES, Part, Request, is_version};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_128;

/// Longest image, in bytes.
pub const IMAGE_BYTES_MAX: usize = 4 << 20;
/// Images kept, of all devices.
const IMAGES_MAX: usize = 64;
const MAGIC: &[u8; 6] = b"HWFW1\n";
const HEAD_BYTES_MAX: u64 = 4 << 10;
const SIGNATURE_BYTES: usize = 64;

/// Why an image is not kept.
#[derive(Debug, thiserror::Error)]
pub enum NoFirmware {
    #[error("not a client id that has topics: 1 to 256 bytes without '/', '+' and '#'")]
    Id,
    #[error("a version is 1 to 32 visible ASCII characters: write ?version=1.2.3")]
    Version,
    #[error("write the firmware's Ed25519 signature as a header, Headwater-Signature: 128 hex digits")]
    Signature,
    #[error("an image is 1 byte to 4 MiB long")]
    Length,
    #[error("{IMAGES_MAX} images are kept for devices already: DELETE one")]
    TooMany,
    #[error("this gateway keeps no images")]
    NoPlace,
    #[error("the image cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// What is offered to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offered {
    pub version: String,
    pub length: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Head {
    client_id: String,
    /// Of the offer: another each time.
    id: u32,
    version: String,
    /// In hex.
    signature: String,
}

struct Image {
    head: Head,
    signature: [u8; SIGNATURE_BYTES],
    length: u32,
    file: File,
    /// Where the image begins in the file.
    start: u64,
}

/// All images.
pub struct Firmware {
    dir: PathBuf,
    images: Mutex<HashMap<String, Arc<Image>>>,
}

impl Firmware {
    /// Finds what is kept; what is no image is left alone and not offered.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let mut images = HashMap::new();
        for entry in fs::read_dir(&dir)?.take(2 * IMAGES_MAX) {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("fw") => {
                    if let Some(image) = Image::open(&path)? {
                        images.insert(image.head.client_id.clone(), Arc::new(image));
                    }
                }
                // A write that was cut.
                Some("part") => fs::remove_file(&path)?,
                _ => {}
            }
        }
        Ok(Firmware { dir, images: Mutex::new(images) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Image>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a device is told.
    pub fn offer(&self, client_id: &str) -> Option<Bytes> {
        self.lock().get(client_id).map(|image| image.offer())
    }

    pub fn offered(&self, client_id: &str) -> Option<Offered> {
        let images = self.lock();
        let image = images.get(client_id)?;
        Some(Offered { version: image.head.version.clone(), length: image.length })
    }

    /// The part that a device asks for. Reads a disk.
    pub fn part(&self, client_id: &str, request: &Request) -> Option<Bytes> {
        let image = self.lock().get(client_id).filter(|image| image.head.id == request.id)?.clone();
        let length = image.length.saturating_sub(request.offset).min(u32::from(request.length)) as usize;
        let mut payload = vec![0; PART_HEAD_BYTES + length.min(PART_BYTES_MAX)];
        let (to, bytes) = payload.split_at_mut(PART_HEAD_BYTES);
        image.file.read_exact_at(bytes, image.start + u64::from(request.offset)).ok()?;
        to.copy_from_slice(&Part { id: request.id, offset: request.offset, bytes }.head());
        Some(payload.into())
    }

    /// Keeps an image for a device in place of the one before. Writes to a disk; one at a time.
    pub fn keep(&self, client_id: &str, version: &str, signature: &str, image: &[u8]) -> Result<(), NoFirmware> {
        if !is_version(version) {
            return Err(NoFirmware::Version);
        }
        if signature_of(signature).is_none() {
            return Err(NoFirmware::Signature);
        }
        if image.is_empty() || image.len() > IMAGE_BYTES_MAX {
            return Err(NoFirmware::Length);
        }
        let images = self.lock();
        if images.len() >= IMAGES_MAX && !images.contains_key(client_id) {
            return Err(NoFirmware::TooMany);
        }
        drop(images);
        let head = Head {
            client_id: client_id.to_owned(),
            id: fastrand::u32(1..),
            version: version.to_owned(),
            signature: signature.to_owned(),
        };
        let head = serde_json::to_vec(&head).map_err(io::Error::from)?;
        let path = self.path(client_id);
        let aside = path.with_extension("part");
        let mut file = File::create(&aside)?;
        for bytes in [&MAGIC[..], &(head.len() as u32).to_le_bytes(), &head, image] {
            file.write_all(bytes)?;
        }
        file.sync_all()?;
        #[expect(clippy::disallowed_methods, reason = "the directory is synced behind it")]
        fs::rename(&aside, &path)?;
        File::open(&self.dir)?.sync_all()?;
        if let Some(image) = Image::open(&path)? {
            self.lock().insert(client_id.to_owned(), Arc::new(image));
        }
        Ok(())
    }

    /// Offers a device nothing any more. Writes to a disk.
    pub fn drop_image(&self, client_id: &str) -> Result<(), NoFirmware> {
        if self.lock().remove(client_id).is_some() {
            fs::remove_file(self.path(client_id))?;
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    fn path(&self, client_id: &str) -> PathBuf {
        self.dir.join(format!("{:032x}.fw", xxh3_128(client_id.as_bytes())))
    }
}

impl Image {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let mut file = File::open(path)?;
        let mut fixed = [0; MAGIC.len() + 4];
        let length = file.metadata()?.len();
        if length < fixed.len() as u64 {
            return Ok(None);
        }
        file.read_exact(&mut fixed)?;
        let (magic, head_length) = fixed.split_at(MAGIC.len());
        let head_length = u64::from(head_length.try_into().map_or(0, u32::from_le_bytes));
        let start = fixed.len() as u64 + head_length;
        if magic != MAGIC || head_length > HEAD_BYTES_MAX || start >= length {
            return Ok(None);
        }
        let mut head = vec![0; head_length as usize];
        file.read_exact(&mut head)?;
        let head: Option<Head> = serde_json::from_slice(&head).ok();
        let image = head.and_then(|head| {
            let length = u32::try_from(length - start).ok().filter(|length| *length as usize <= IMAGE_BYTES_MAX)?;
            let signature = signature_of(&head.signature)?;
            is_version(&head.version).then_some(Image { head, signature, length, file, start })
        });
        Ok(image)
    }

    fn offer(&self) -> Bytes {
        let Head { id, version, .. } = &self.head;
        let mut payload = vec![0; 128];
        let offer = Offer { id: *id, length: self.length, signature: &self.signature, version };
        let length = offer.write(&mut payload).unwrap_or(0);
        payload.truncate(length);
        payload.into()
    }
}

fn signature_of(hex: &str) -> Option<[u8; SIGNATURE_BYTES]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * SIGNATURE_BYTES {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).map(|value| value as u8);
    let mut signature = [0; SIGNATURE_BYTES];
    for (byte, pair) in signature.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_offered_read_in_parts_and_still_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let firmware = Firmware::open(dir.path().join("firmware")).unwrap();
        let image: Vec<u8> = (0..3_000u32).map(|at| at as u8).collect();
        let signature = "0f".repeat(64);
        assert!(matches!(firmware.keep("d1", "", &signature, &image), Err(NoFirmware::Version)));
        assert!(matches!(firmware.keep("d1", "1", "0f", &image), Err(NoFirmware::Signature)));
        assert!(matches!(firmware.keep("d1", "1", &signature, &[]), Err(NoFirmware::Length)));
        firmware.keep("d1", "1", &signature, b"the one before").unwrap();
        firmware.keep("d1", "2", &signature, &image).unwrap();
        fs::write(dir.path().join("firmware/x.part"), b"half").unwrap();
        fs::write(dir.path().join("firmware/x.fw"), b"HWFW1\n\xff\xff\xff\xff nonsense").unwrap();
        let again = Firmware::open(dir.path().join("firmware")).unwrap();
        let offer = again.offer("d1").unwrap();
        assert_eq!(firmware.offer("d1").unwrap(), offer);
        let offer = Offer::read(&offer).unwrap();
        assert_eq!((offer.version, offer.length, offer.signature), ("2", 3_000, &[0x0f; 64]));
        let mut all = Vec::new();
        for offset in (0..3_256).step_by(256) {
            let payload = again.part("d1", &Request { id: offer.id, offset, length: 256 }).unwrap();
            all.extend_from_slice(Part::read(&payload).unwrap().bytes);
        }
        assert_eq!(all, image);
        assert_eq!(again.part("d1", &Request { id: offer.id ^ 1, offset: 0, length: 256 }), None);
        assert_eq!(again.offer("d2"), None);
        again.drop_image("d1").unwrap();
        assert_eq!(Firmware::open(dir.path().join("firmware")).unwrap().offer("d1"), None);
    }
}
