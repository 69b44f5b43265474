//! Length-prefixed messages: one byte whether it is compressed, four bytes of length, the message.

use super::{Code, Status};

/// The largest request, in bytes: a VMI and its domain are a few kB.
pub const MAX_REQUEST: usize = 8 << 20;
const PREFIX: usize = 5;

/// The message of a request that has exactly one.
pub fn decode(body: &[u8]) -> Result<&[u8], Status> {
    let Some((&[compressed, a, b, c, d], message)) = body.split_first_chunk::<PREFIX>() else {
        return Err(Status::new(Code::InvalidArgument, "the request ends before its message begins"));
    };
    if compressed != 0 {
        return Err(Status::new(Code::Unimplemented, "the request is compressed, which was not agreed on"));
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(Status::new(
            Code::InvalidArgument,
            "the length of the message is not what its frame says",
        ));
    }
    Ok(message)
}

/// A response with one message.
pub fn encode(message: &impl prost::Message) -> Result<Vec<u8>, Status> {
    let length = u32::try_from(message.encoded_len())
        .map_err(|_| Status::new(Code::ResourceExhausted, "the answer is larger than a message can be"))?;
    let mut frame = Vec::with_capacity(PREFIX + length as usize);
    frame.push(0);
    frame.extend(length.to_be_bytes());
    message
        .encode(&mut frame)
        .map_err(|error| Status::new(Code::Internal, format!("the answer cannot be written: {error}")))?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hook_api::callbacks::OnDefineDomainResult;

    #[test]
    fn frames_are_read_as_they_are_written() {
        let message = OnDefineDomainResult { domain_xml: b"<domain/>".to_vec() };
        let frame = encode(&message).unwrap();
        let back: OnDefineDomainResult = prost::Message::decode(decode(&frame).unwrap()).unwrap();
        assert_eq!(back, message);
        for wrong in [&b""[..], &[0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 9]] {
            assert!(decode(wrong).is_err(), "{wrong:?}");
        }
    }
}
