//! Change log -> indexes -> candidates; synchronous.
