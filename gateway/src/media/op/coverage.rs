//! What of AWS's three clients for Kinesis Video is answered here, and why the rest is not: the table of docs/video.md.
//!
//! A path of an operation that is not offered is ours all the same: whoever asks hears why, by AWS's name for it.

use crate::media::shape::{Kind, Refusal};
#[cfg(test)]
use std::fmt::Write;

const WEBRTC: &str = "WebRTC signaling is another service, for two peers and not for what is kept";
const EDGE: &str = "configures AWS's own edge agent; this is the edge";
const IMAGES: &str = "pictures at a pace go to no bucket from here: GetImages and `image.jpg` give them when asked for";
const NOTIFY: &str = "there is no SNS here";
const TIERS: &str = "there is one storage tier: this disk";

/// An operation of botocore 1.44 that is not offered: name, path, why.
const REFUSED: [(&str, &str, &str); 15] = [
    ("CreateSignalingChannel", "/createSignalingChannel", WEBRTC),
    ("DeleteEdgeConfiguration", "/deleteEdgeConfiguration", EDGE),
    ("DeleteSignalingChannel", "/deleteSignalingChannel", WEBRTC),
    ("DescribeMediaStorageConfiguration", "/describeMediaStorageConfiguration", WEBRTC),
    ("DescribeSignalingChannel", "/describeSignalingChannel", WEBRTC),
    ("GetSignalingChannelEndpoint", "/getSignalingChannelEndpoint", WEBRTC),
    ("ListEdgeAgentConfigurations", "/listEdgeAgentConfigurations", EDGE),
    ("ListSignalingChannels", "/listSignalingChannels", WEBRTC),
    ("StartEdgeConfigurationUpdate", "/startEdgeConfigurationUpdate", EDGE),
    ("DescribeEdgeConfiguration", "/describeEdgeConfiguration", EDGE),
    ("UpdateImageGenerationConfiguration", "/updateImageGenerationConfiguration", IMAGES),
    ("UpdateMediaStorageConfiguration", "/updateMediaStorageConfiguration", WEBRTC),
    ("UpdateNotificationConfiguration", "/updateNotificationConfiguration", NOTIFY),
    ("UpdateSignalingChannel", "/updateSignalingChannel", WEBRTC),
    ("UpdateStreamStorageConfiguration", "/updateStreamStorageConfiguration", TIERS),
];

/// Why a path of the service has no operation behind it.
pub fn refused(path: &str) -> Option<Refusal> {
    let (name, _, why) = REFUSED.iter().find(|(_, known, _)| *known == path)?;
    Some(Refusal::new(Kind::UnknownOperation, format!("{name} is not offered by this Headwater: {why}")))
}

#[cfg(test)]
mod tests {
    use super::super::OPERATIONS;
    use super::*;
    use std::fmt::Write;

    /// What is answered otherwise than AWS does, in a few words.
    fn note(name: &str) -> &'static str {
        match name {
            "DescribeImageGenerationConfiguration" | "DescribeNotificationConfiguration" => "none is configured",
            "DescribeMappedResourceConfiguration" => "none is mapped",
            "DescribeStreamStorageConfiguration" => "always HOT",
            "GetClip" => "up to a day and 100,000 fragments; AV1 and Opus too",
            "GetDASHStreamingSessionURL" => "without DisplayFragmentTimestamp and DisplayFragmentNumber",
            "GetHLSStreamingSessionURL" => "without MPEG_TS; AV1 and Opus too",
            "GetImages" => "what is no JPEG already wants ffmpeg on the box",
            _ => "",
        }
    }

    /// The table of docs/video.md.
    fn table() -> String {
        let mut rows: Vec<(&str, &str, &str, &str)> = Vec::new();
        rows.extend(OPERATIONS.iter().map(|operation| (operation.service, operation.name, "yes", note(operation.name))));
        rows.extend(REFUSED.iter().map(|(name, _, why)| ("kinesisvideo", *name, "no", *why)));
        rows.sort_unstable_by_key(|(service, name, ..)| (*service != "kinesisvideo", *service, *name));
        let mut text = String::from("| client | operation | answered | |\n|---|---|---|---|\n");
        for (service, name, answered, note) in rows {
            let _ = writeln!(text, "| {service} | {name} | {answered} | {note} |");
        }
        text
    }

    #[test]
    fn the_table_in_the_docs_is_the_table_in_the_code() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/video.md")).unwrap();
        assert!(page.contains(&table()), "put this into docs/video.md:\n{}", table());
    }

    #[test]
    fn an_operation_is_offered_or_refused_and_not_both() {
        for (name, path, _) in REFUSED {
            assert!(OPERATIONS.iter().all(|operation| operation.name != name && operation.path != path), "{name}");
        }
        assert!(refused("/getMedia").is_none() && refused("/createSignalingChannel").is_some());
    }
}
