//! Sessions without a network: doubles of a socket and a broker, a property test
//! against a plain model, and what the model leaves out.

mod directed;
mod double;
mod fleet;
mod house;
mod lag;
mod model;
