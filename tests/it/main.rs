//! What the parts promise together: one binary, so one link step.

mod tidy;
