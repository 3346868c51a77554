//! The sample configuration of `deploy/`, generated from the types.
