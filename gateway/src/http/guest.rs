//! Paths of a server that another part of the gateway answers: video is on the AWS port and on the console's.
//!
//! The host says who may ask (signatures, tokens) before the guest sees a request; a guest that wants a body whole gets it
//! so, because a signature covers it, and one that wants it as it comes gets the connection.

use super::Body;
use bytes::Bytes;
use http::{Method, Response, request};
use hyper::body::Incoming;
use std::pin::Pin;

pub type Answering<'a> = Pin<Box<dyn Future<Output = Response<Body>> + Send + 'a>>;

/// How a guest wants the body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Up to so many bytes.
    Whole(usize),
    /// As it comes: nobody can have signed it.
    Stream,
    /// None, from anybody: the path carries its own proof, which the guest judges.
    Open,
}

#[derive(Debug)]
pub enum Input {
    Whole(Bytes),
    Stream(Incoming),
}

pub trait Guest: Send + Sync + 'static {
    /// `None`: the path is not the guest's.
    fn wants(&self, method: &Method, path: &str) -> Option<Wants>;
    fn answer(&self, head: request::Parts, input: Input) -> Answering<'_>;
}
