// Where the page finds a model's files: beside it in weights/, or held by a script of the saved page (`--save`).

/** The content of a file, as an ArrayBuffer. */
export async function fetchFile(name) {
  const held = globalThis.EXPLORER_FILES;
  if (held) {
    if (!(name in held)) throw new Error(`${name} was not saved with this page`);
    const text = atob(held[name]), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes.buffer;
  }
  const answer = await fetch(`weights/${name}`);
  if (!answer.ok) throw new Error(`weights/${name}: ${answer.status}`);
  return answer.arrayBuffer();
}
