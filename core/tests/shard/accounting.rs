//! Nothing is lost without being counted: random traffic, full lanes, workers that die.
