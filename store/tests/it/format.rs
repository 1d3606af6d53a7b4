//! A reader written from FORMAT.md alone: none of the store's own code opens anything here.

use std::fs;
use std::path::Path;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hkdf::Hkdf;
use lastgood_store::{
    Encryption, MasterKey, Repository, RepositoryUrl, SourceObject, StorageOptions,
};
use serde_json::Value;
use sha2::Sha256;

use crate::support::{body, noise, seal, segment, source_file, source_id};

const FORMAT: &str = include_str!("../../../FORMAT.md");

fn hkdf<const LENGTH: usize>(ikm: &[u8], salt: &[u8], info: &[u8]) -> [u8; LENGTH] {
    let mut output = [0; LENGTH];
    Hkdf::<Sha256>::new(Some(salt), ikm)
        .expand(info, &mut output)
        .unwrap();
    output
}

fn gcm(key: &[u8; 32], nonce: [u8; 12], sealed: &[u8], associated: &[u8]) -> Vec<u8> {
    let payload = Payload {
        msg: sealed,
        aad: associated,
    };
    Aes256Gcm::new(key.into())
        .decrypt(&nonce.into(), payload)
        .unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

fn fingerprint(master: &[u8]) -> String {
    hex(&hkdf::<8>(
        master,
        b"",
        b"lastgood master key fingerprint v1",
    ))
}

fn unwrap_data_key(master: &[u8], repository: &str, wrap: &Value) -> Vec<u8> {
    assert_eq!(wrap["v"], 1);
    let salt = BASE64.decode(text(wrap, "salt")).unwrap();
    let wrapped = BASE64.decode(text(wrap, "wrapped")).unwrap();
    let (source, id) = (text(wrap, "source"), text(wrap, "id"));
    let associated = format!("lastgood key v1\n{repository}\n{source}\n{id}\n");
    assert_eq!(associated.len(), 67);
    let wrap_key = hkdf::<32>(master, &salt, b"lastgood key wrap v1");
    gcm(&wrap_key, [0; 12], &wrapped, associated.as_bytes())
}

fn open(object: &[u8], data_key: &[u8], key_id: &str, context: &str) -> Vec<u8> {
    let (header, mut rest) = object.split_at(56);
    assert_eq!(&header[..16], b"lastgood\x01\0\0\0\0\0\0\0");
    assert_eq!(hex(&header[16..24]), key_id);
    let info = format!("lastgood object key v1\n{context}");
    let object_key = hkdf::<32>(data_key, &header[24..], info.as_bytes());
    let mut frame = Vec::new();
    for number in 0_u64.. {
        let last = rest.len() <= 65_552;
        let (chunk, after) = rest.split_at(rest.len().min(65_552));
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&number.to_be_bytes());
        nonce[11] = u8::from(last);
        frame.extend_from_slice(&gcm(&object_key, nonce, chunk, header));
        rest = after;
        if last {
            break;
        }
    }
    zstd::stream::decode_all(&frame[..]).unwrap()
}

#[test]
fn the_example_in_the_text_opens_as_the_text_says() {
    let (_, example) = FORMAT.split_once("### Example").unwrap();
    let block = example.split("```").nth(1).unwrap();
    let after = |name: &str| {
        let mut lines = block.lines().skip_while(|line| !line.starts_with(name));
        let line = lines.next().unwrap().strip_prefix(name).unwrap().trim();
        let rest: Vec<&str> = lines
            .take_while(|line| line.starts_with(' '))
            .map(str::trim)
            .collect();
        (line.to_owned(), rest.concat())
    };
    let master = BASE64.decode(after("master key").0).unwrap();
    let print = after("fingerprint").0;
    assert_eq!(fingerprint(&master), print);
    let (key_path, wrap) = after("key object");
    let wrap: Value = serde_json::from_str(&wrap).unwrap();
    let id = text(&wrap, "id");
    assert_eq!(key_path, format!("keys/{id}-{print}.json"));
    let data_key = unwrap_data_key(&master, &after("repository id").0, &wrap);
    assert_eq!(hex(&data_key), after("data key").0);
    let (path, object) = after("object");
    let context = path.strip_suffix(".zst.enc").unwrap();
    let content = open(&unhex(&object), &data_key, &id, context);
    assert_eq!(content, b"{\"v\":1,\"name\":\"shop\"}");
}

#[tokio::test]
async fn a_reader_written_from_the_text_reads_what_the_store_writes() {
    let folder = tempfile::tempdir().unwrap();
    let url = RepositoryUrl::local(folder.path());
    let master = MasterKey::generate().unwrap();
    let encryption = Encryption::On(master.clone());
    let options = StorageOptions::default();
    let repository = Repository::create_or_open(&url, &options, encryption);
    let store = repository
        .await
        .unwrap()
        .create_source(source_id())
        .await
        .unwrap();
    store
        .put_json(&SourceObject::Source, &source_file())
        .await
        .unwrap();
    let plain = noise(200_000);
    let object = segment(0x16B_3748, 0x16B_37C0);
    let sealed = seal(&store, &object, &plain);
    store.put_sealed(&object, &body(&sealed)).await.unwrap();

    let read = |path: &Path| fs::read(folder.path().join(path)).unwrap();
    let json = |path: &Path| serde_json::from_slice::<Value>(&read(path)).unwrap();
    let described = json(Path::new("lastgood.json"));
    assert_eq!(described["v"], 1);
    assert_eq!(described["encryption"], "aes-256-gcm");
    let repository = text(&described, "id");

    let secret = BASE64.decode(master.to_base64().as_bytes()).unwrap();
    let mut keys = fs::read_dir(folder.path().join("keys")).unwrap();
    let key = keys.next().unwrap().unwrap().path();
    assert!(keys.next().is_none());
    let wrap = json(&key);
    let id = text(&wrap, "id");
    let name = format!("{id}-{}.json", fingerprint(&secret));
    assert_eq!(key.file_name().unwrap().to_str(), Some(name.as_str()));
    let data_key = unwrap_data_key(&secret, &repository, &wrap);

    let description = read(Path::new("sources/0001020304050607/source.json.zst.enc"));
    let context = "sources/0001020304050607/source.json";
    let description = open(&description, &data_key, &id, context);
    let description: Value = serde_json::from_slice(&description).unwrap();
    assert_eq!(description["name"], "shop");

    let context = "sources/0001020304050607/00000001-00c0ffee/segments/00000000016b3748";
    let stored = read(Path::new(&format!(
        "{context}-00000000016b37c0-8000000000000001-0000000000000000.ndjson.zst.enc"
    )));
    assert_eq!(open(&stored, &data_key, &id, context), plain);
}

#[tokio::test]
async fn without_encryption_an_object_is_a_zstd_frame() {
    let folder = tempfile::tempdir().unwrap();
    let url = RepositoryUrl::local(folder.path());
    let options = StorageOptions::default();
    let repository = Repository::create_or_open(&url, &options, Encryption::Off)
        .await
        .unwrap();
    let store = repository.create_source(source_id()).await.unwrap();
    store
        .put_json(&SourceObject::Source, &source_file())
        .await
        .unwrap();
    let stored = fs::read(
        folder
            .path()
            .join("sources/0001020304050607/source.json.zst"),
    );
    let plain = zstd::stream::decode_all(&stored.unwrap()[..]).unwrap();
    let description: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(description["name"], "shop");
    assert!(!folder.path().join("keys").exists());
}
