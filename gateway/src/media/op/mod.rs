//! The operations of Kinesis Video Streams: one table from path to operation, a file a matter.
//!
//! Three of AWS's services share the port: `kinesisvideo` (control), `kinesis-video-media` and
//! `kinesis-video-archived-media`; their paths do not meet, and all are signed for `kinesisvideo`.

mod clip;
mod control;
mod coverage;
mod fragments;
mod get_media;
mod images;
mod put_media;
mod sessions;

pub use coverage::refused;
pub use put_media::{post_media, put_media};

use super::Media;
use super::shape::Refusal;
use crate::http::Body;
use http::{HeaderMap, Response};
use std::pin::Pin;

/// Longest request of an operation whose body is JSON, in bytes: a thousand fragment numbers fit.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// One request on its way to its operation.
pub struct Call<'a> {
    pub media: &'a Media,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

impl Call<'_> {
    /// Where the client found us: media is on the same port.
    pub fn endpoint(&self) -> String {
        let host = self.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        format!("http://{}", host.unwrap_or("127.0.0.1:4567"))
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response<Body>, Refusal>> + Send + 'a>>;

pub struct Operation {
    pub service: &'static str,
    pub name: &'static str,
    pub path: &'static str,
    pub run: for<'a> fn(&'a Call<'a>) -> Answering<'a>,
}

macro_rules! operations {
    ($( $service:literal $name:literal $path:literal => $run:path, )*) => {
        /// What this gateway offers; PutMedia, whose body has no end, is beside it.
        pub const OPERATIONS: &[Operation] = &[$(
            Operation { service: $service, name: $name, path: $path, run: |call| Box::pin($run(call)) },
        )*];
    };
}

operations! {
    "kinesisvideo" "CreateStream" "/createStream" => control::create_stream,
    "kinesisvideo" "DeleteStream" "/deleteStream" => control::delete_stream,
    "kinesisvideo" "DescribeImageGenerationConfiguration" "/describeImageGenerationConfiguration" => control::no_configuration,
    "kinesisvideo" "DescribeMappedResourceConfiguration" "/describeMappedResourceConfiguration" => control::no_mapped_resource,
    "kinesisvideo" "DescribeNotificationConfiguration" "/describeNotificationConfiguration" => control::no_configuration,
    "kinesisvideo" "DescribeStream" "/describeStream" => control::describe_stream,
    "kinesisvideo" "DescribeStreamStorageConfiguration" "/describeStreamStorageConfiguration" => control::describe_storage,
    "kinesisvideo" "GetDataEndpoint" "/getDataEndpoint" => control::get_data_endpoint,
    "kinesisvideo" "ListStreams" "/listStreams" => control::list_streams,
    "kinesisvideo" "ListTagsForResource" "/ListTagsForResource" => control::list_tags,
    "kinesisvideo" "ListTagsForStream" "/listTagsForStream" => control::list_tags,
    "kinesisvideo" "TagResource" "/TagResource" => control::tag,
    "kinesisvideo" "TagStream" "/tagStream" => control::tag,
    "kinesisvideo" "UntagResource" "/UntagResource" => control::untag,
    "kinesisvideo" "UntagStream" "/untagStream" => control::untag,
    "kinesisvideo" "UpdateDataRetention" "/updateDataRetention" => control::update_data_retention,
    "kinesisvideo" "UpdateStream" "/updateStream" => control::update_stream,
    "kinesis-video-media" "GetMedia" "/getMedia" => get_media::get_media,
    "kinesis-video-archived-media" "GetClip" "/getClip" => clip::get_clip,
    "kinesis-video-archived-media" "GetDASHStreamingSessionURL" "/getDASHStreamingSessionURL" => sessions::dash,
    "kinesis-video-archived-media" "GetHLSStreamingSessionURL" "/getHLSStreamingSessionURL" => sessions::hls,
    "kinesis-video-archived-media" "GetImages" "/getImages" => images::get_images,
    "kinesis-video-archived-media" "GetMediaForFragmentList" "/getMediaForFragmentList" => get_media::get_media_for_fragment_list,
    "kinesis-video-archived-media" "ListFragments" "/listFragments" => fragments::list_fragments,
}

pub const PUT_MEDIA_PATH: &str = "/putMedia";

pub fn operation(path: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.path == path)
}
