//! Matroska by hand, for what no muxer writes: a file taken apart at its clusters and keyframes, and blocks, clusters and tags put
//! together.

const CLUSTER: &[u8] = &[0x1f, 0x43, 0xb6, 0x75];
const TIMESTAMP: &[u8] = &[0xe7];
const SIMPLE_BLOCK: &[u8] = &[0xa3];
const BLOCK_GROUP: &[u8] = &[0xa0];
const BLOCK: &[u8] = &[0xa1];
const REFERENCE: &[u8] = &[0xfb];

/// A number of EBML and how many bytes it has; with its marker if it is an id.
fn number(bytes: &[u8], is_id: bool) -> (u64, usize) {
    let length = bytes[0].leading_zeros() as usize + 1;
    let first = u64::from(bytes[0]) & if is_id { 0xff } else { (1 << (8 - length)) - 1 };
    (bytes[1..length].iter().fold(first, |value, byte| value << 8 | u64::from(*byte)), length)
}

/// The elements in a row: id, and where the body begins and ends.
fn elements(bytes: &[u8]) -> Vec<(&[u8], usize, usize)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let id = number(&bytes[at..], true).1;
        let (size, length) = number(&bytes[at + id..], false);
        let body = at + id + length;
        let end = (body + size as usize).min(bytes.len());
        found.push((&bytes[at..at + id], body, end));
        at = end;
    }
    found
}

/// A file as it streams: its head, and its clusters, whose lengths are known; what stands behind them is left out.
pub fn split(bytes: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let start = bytes.windows(4).position(|window| window == CLUSTER).expect("a cluster");
    let mut at = start;
    let clusters = elements(&bytes[start..]).into_iter().map_while(|(id, _, end)| {
        let whole = bytes[at..start + end].to_vec();
        at = start + end;
        (id == CLUSTER).then_some(whole)
    });
    (bytes[..start].to_vec(), clusters.collect())
}

/// A block of a cluster.
struct Block<'a> {
    /// Since the beginning of the stream.
    at_ms: u64,
    track: u8,
    keyframe: bool,
    frame: &'a [u8],
    /// Where it ends in its cluster.
    end: usize,
}

fn blocks(cluster: &[u8]) -> Vec<Block<'_>> {
    let (_, body, _) = elements(cluster)[0];
    let (mut time, mut found) = (0, Vec::new());
    for (id, from, to) in elements(&cluster[body..]) {
        let content = &cluster[body + from..body + to];
        let (block, keyframe) = match id {
            TIMESTAMP => {
                time = content.iter().fold(0, |time, byte| time << 8 | u64::from(*byte));
                continue;
            }
            SIMPLE_BLOCK => (content, content[3] & 0x80 != 0),
            BLOCK_GROUP => {
                let inner = elements(content);
                let (_, from, to) = *inner.iter().find(|(id, ..)| *id == BLOCK).expect("a group has a block");
                (&content[from..to], inner.iter().all(|(id, ..)| *id != REFERENCE))
            }
            _ => continue,
        };
        let at_ms = time.saturating_add_signed(i64::from(i16::from_be_bytes([block[1], block[2]])));
        found.push(Block { at_ms, track: block[0] & 0x7f, keyframe, frame: &block[4..], end: body + to });
    }
    found
}

/// Where each keyframe of the first track ends, behind the file's first byte.
pub fn keyframe_ends(bytes: &[u8]) -> Vec<usize> {
    let (head, clusters) = split(bytes);
    let (mut at, mut ends) = (head.len(), Vec::new());
    for cluster in &clusters {
        let keyframes = blocks(cluster).into_iter().filter(|block| block.track == 1 && block.keyframe);
        ends.extend(keyframes.map(|block| at + block.end));
        at += cluster.len();
    }
    ends
}

/// A file's head, and its frames in a cluster for each keyframe of the first track, wherever its muxer began one.
pub fn by_keyframe(bytes: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (head, clusters) = split(bytes);
    let mut groups: Vec<Vec<Block<'_>>> = Vec::new();
    for block in clusters.iter().flat_map(|cluster| blocks(cluster)) {
        match groups.last_mut() {
            Some(group) if !(block.track == 1 && block.keyframe) => group.push(block),
            _ => groups.push(vec![block]),
        }
    }
    let again = |group: &Vec<Block<'_>>| {
        let start = group[0].at_ms;
        let after = |it: &Block<'_>| block(it.track, (it.at_ms as i64 - start as i64) as i16, it.keyframe, it.frame);
        cluster(start, &group.iter().map(after).collect::<Vec<_>>())
    };
    (head, groups.iter().map(again).collect())
}

fn element(id: &[u8], body: &[u8]) -> Vec<u8> {
    let length = (1u64 << 56 | body.len() as u64).to_be_bytes();
    [id, &length, body].concat()
}

/// A frame, so many milliseconds behind its cluster's time.
pub fn block(track: u8, after_ms: i16, keyframe: bool, frame: &[u8]) -> Vec<u8> {
    let flags = if keyframe { 0x80 } else { 0 };
    element(SIMPLE_BLOCK, &[&[0x80 | track], &after_ms.to_be_bytes()[..], &[flags], frame].concat())
}

pub fn cluster(at_ms: u64, blocks: &[Vec<u8>]) -> Vec<u8> {
    element(CLUSTER, &[element(TIMESTAMP, &at_ms.to_be_bytes()), blocks.concat()].concat())
}

/// Tags of the whole Segment.
pub fn tags(pairs: &[(&str, &str)]) -> Vec<u8> {
    let simple = |(name, value): &(&str, &str)| {
        let pair = [element(&[0x45, 0xa3], name.as_bytes()), element(&[0x44, 0x87], value.as_bytes())];
        element(&[0x67, 0xc8], &pair.concat())
    };
    let targets = element(&[0x63, 0xc0], &[]);
    let tag = element(&[0x73, 0x73], &[targets, pairs.iter().flat_map(simple).collect()].concat());
    element(&[0x12, 0x54, 0xc3, 0x67], &tag)
}

/// The values of all tags of a name, in the order they stand in; the name must not occur in anything else.
pub fn tag_values(bytes: &[u8], name: &str) -> Vec<String> {
    let places = bytes.windows(name.len()).enumerate().filter(|(_, window)| *window == name.as_bytes());
    let value = |(at, _): (usize, &[u8])| {
        let rest = bytes[at + name.len()..].strip_prefix(&[0x44, 0x87])?;
        let (size, length) = number(rest, false);
        Some(String::from_utf8_lossy(&rest[length..length + size as usize]).into_owned())
    };
    places.filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_is_taken_apart() {
        let blocks = [block(1, 0, true, b"key"), block(1, 40, false, b"next"), block(2, 0, true, b"sound")];
        let clusters = [cluster(0, &blocks), cluster(80, &[block(1, 0, true, b"another")])];
        let tags = tags(&[("DOOR", "open"), ("DOOR", "shut")]);
        let file = [b"a head", &clusters.concat()[..], &tags].concat();
        assert_eq!(split(&file), (b"a head".to_vec(), clusters.to_vec()));
        let ends = keyframe_ends(&file);
        assert_eq!(ends.len(), 2);
        assert!(file[..ends[0]].ends_with(b"key") && file[..ends[1]].ends_with(b"another"));
        // The sound stays where its picture is, and the head of the file with it.
        assert_eq!(by_keyframe(&file), split(&file));
        assert_eq!(tag_values(&file, "DOOR"), ["open", "shut"]);
    }
}
