//! What a machine can lack while Faber runs.
