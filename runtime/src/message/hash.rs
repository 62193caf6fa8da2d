//! Hashes of keys and ids: a shard's number, 16 bytes.
//! In: bytes. Out: their hash, the same in each version of the program, as stores keep it.

use uuid::Uuid;

use super::ShardNo;

/// The 16 bytes that stand for an id: a UUID's own, else a keyed BLAKE3 hash.
pub fn digest(id: &str, hash_key: &[u8; 32]) -> [u8; 16] {
    if let Ok(uuid) = Uuid::try_parse(id) {
        return uuid.into_bytes();
    }
    keyed_hash(id.as_bytes(), hash_key)
}

/// The first 16 bytes of a keyed BLAKE3 hash.
pub(crate) fn keyed_hash(bytes: &[u8], hash_key: &[u8; 32]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::keyed_hash(hash_key, bytes).as_bytes()[..16]);
    short
}

/// Kafka's Java default partitioner: murmur2 of the key, sign bit cleared, modulo the shards.
pub fn shard_of(key: &str, shards: u32) -> ShardNo {
    (murmur2(key.as_bytes()) & 0x7fff_ffff) % shards.max(1)
}

/// 32-bit murmur2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    for (i, byte) in rest.iter().enumerate().rev() {
        hash ^= u32::from(*byte) << (8 * i);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}
