
const NO_ANSWER = "The server does not answer. Check that it is running and that your connection works, then try again.";
const UNREADABLE = "The file can no longer be read. Choose the image again.";
const DROPPED = "The server dropped the attention of this image at once, to make room for other images. Try again later.";
const NOT_KEPT = "The server has too little memory to keep the attention of this image, so it cannot show the attention of a point.";
const LOCKED = "This server is locked. Enter its token above, which works like a password; ask whoever runs the server for it.";
const WRONG_TOKEN = "This is not the token of this server. Check for a typing error, or ask whoever runs the server.";

// Send a request and read its response as "json" or "blob". Errors carry a sentence for the user and the HTTP status, if
// any; `lost` says that the server did not answer, `gone` that the file to send could not be read.
async function ask(path, read, { sent, ...options } = {}) {
  const { token } = state, headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer, told;
  try {
    answer = await (sent ? upload(path, { ...options, headers }, sent) : fetch(path, { ...options, headers }));
    if (answer.ok) return await answer[read]();
    told = await answer.json().catch(() => ({ error: `The server responded with error ${answer.status}.` }));
  } catch (error) {  // the message of the browser, such as "Failed to fetch", names no cause
    if (error.name === "AbortError") throw error;
    const gone = options.body && !await options.body.slice(0, 1).arrayBuffer().then(() => true, () => false);
    throw Object.assign(new Error(gone ? UNREADABLE : NO_ANSWER), { gone, lost: !gone });
  }
  if (answer.status === 401) {
    $("token").hidden = false;
    told.error = token ? WRONG_TOKEN : LOCKED;
  }
  throw Object.assign(new Error(told.error), { status: answer.status });
}

// The same as `fetch`, but `sent` is called with the part of the body that was sent, from 0 to 1.
function upload(path, { method, body, headers, signal }, sent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(), cancelled = () => reject(new DOMException("cancelled", "AbortError"));
    request.open(method, path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.responseType = "blob";
    request.upload.onprogress = (e) => e.lengthComputable && sent(e.loaded / e.total);
    request.upload.onload = () => sent(1);
    request.onload = () => resolve(new Response(request.response, { status: request.status }));
    request.onerror = () => reject(new TypeError("no answer"));
    request.onabort = cancelled;
    signal?.addEventListener("abort", () => request.abort());
    if (signal?.aborted) cancelled(); else request.send(body);
  });
}

function post(path, read, file, options = {}) {
  return ask(path, read, { method: "POST", body: file, ...options, headers: { ...options.headers, "Content-Type": file.type || "application/octet-stream" } });
}

// Segment an image and store its attention on the server, if the server has the memory.
async function send(image, query, options) {
  const masks = await post(`/v1/images?${query}`, "json", image.file, options);
  if (image.id) forget(image.id);  // two responses at once: the last one counts
  image.id = masks.id;
  image.fits = masks.id !== null;
  if (image.discarded) discard(image);
  return masks;
}

// Send a request that needs the stored attention of an image; return null if the attention has expired.
async function unlessExpired(image, request) {
  const { id } = image;
  if (!id) return null;
  try { return await request(id); } catch (error) {
    if (error.status !== 404) throw error;
    if (image.id === id) image.id = null;
    return null;
  }
}

// The same, but send the image once more if its attention has expired.
async function fromKept(image, query, request) {
  let found = await unlessExpired(image, request);
  if (!found && image.fits) {
    await send(image, query);
    found = await unlessExpired(image, request);
  }
  if (!found) throw new Error(image.fits ? DROPPED : NOT_KEPT);
  return found;
}

function storedMasks(image, query) { return unlessExpired(image, (id) => ask(`/v1/images/${id}/masks?${query}`, "json")); }

async function masksFor(image, query) { return await storedMasks(image, query) || send(image, query); }

async function fullMasks(image, query, accept, read) {
  const headers = { Accept: accept };
  return await unlessExpired(image, (id) => ask(`/v1/images/${id}/masks?${query}`, read, { headers }))
    || post(`/v1/segment?${query}`, read, image.file, { headers });
}

function forget(id) { ask(`/v1/images/${id}`, "blob", { method: "DELETE", keepalive: true }).catch(() => {}); }

function discard(image) {
  image.discarded = true;
  if (image.id) forget(image.id);
  image.id = null;
}

// Find the least threshold that leaves one segment, within 3 %, from the stored attention; null if that has expired.
const PROBE = 128;  // longest side of the masks that are counted, in pixels
const SMALLEST_THRESHOLD = 0.05, LARGEST_THRESHOLD = 16;
async function lastThreshold(image, { anchors }) {
  const single = async (threshold) => {
    const masks = await storedMasks(image, new URLSearchParams({ threshold, anchors, refine: "none", side: PROBE }));
    return masks && masks.segments.length < 2;
  };
  let low = 0, high = 1, one;
  while ((one = await single(high)) === false && high < LARGEST_THRESHOLD) [low, high] = [high, 2 * high];
  while (one !== null && high > SMALLEST_THRESHOLD && high - low > 0.03 * high) {
    const middle = (low + high) / 2;
    one = await single(middle);
    if (one) high = middle; else low = middle;
  }
  return one === null ? null : high;
}
