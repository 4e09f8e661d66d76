// Follows the feed's stream and applies documents by the contract's rule: per id the greatest position wins,
// tombstones are remembered, entries sort by (published_at, first_position).
const list = document.getElementById("entries");
const state = document.getElementById("state");
const { feed, order, timezone } = list.dataset;
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", timeZone: timezone });
const positions = new Map([...list.children].map((item) => [item.id, n(item.dataset.position)]));

function n(position) {
  return Number(position.split("-")[1]);
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Sanitised by the writer before it became an event; the only markup that is taken as such.
function markup(name, html) {
  const made = document.createElement(name);
  made.innerHTML = html;
  return made;
}

function link(url, text) {
  const paragraph = element("p", undefined, "card");
  const anchor = element("a", text);
  if (/^(https?|mailto):/i.test(url)) anchor.href = url;
  paragraph.append(anchor);
  return paragraph;
}

const blocks = {
  text: (b) => markup("p", b.html),
  quote: (b) => {
    const quote = element("blockquote");
    quote.append(markup("p", b.html));
    if (b.attribution) quote.append(element("footer", b.attribution));
    return quote;
  },
  list: (b) => {
    const items = element("ul");
    items.append(...b.items.map((item) => markup("li", item)));
    return items;
  },
  image: (b) => {
    const figure = element("figure");
    const image = element("img");
    image.src = b.url;
    image.alt = b.alt;
    image.loading = "lazy";
    figure.append(image);
    if (b.caption || b.credit) figure.append(element("figcaption", [b.caption, b.credit].filter(Boolean).join(" ")));
    return figure;
  },
  link_card: (b) => link(b.url, b.title),
  embed: (b) => link(b.url, b.provider ?? b.url),
};

function render(entry) {
  const item = element("li", undefined, [entry.key_event && "key-event", entry.pinned && "pinned"].filter(Boolean).join(" "));
  item.id = entry.id;
  item.dataset.key = `${entry.published_at} ${entry.first_position.split("-")[1].padStart(20, "0")}`;
  const time = element("time", clock.format(new Date(entry.published_at)));
  time.dateTime = entry.published_at;
  item.append(time);
  if (entry.headline) item.append(element("h2", entry.headline));
  for (const block of entry.body) if (blocks[block.type]) item.append(blocks[block.type](block));
  if (entry.authors.length) item.append(element("p", entry.authors.map((a) => a.name).join(", "), "by"));
  if (entry.correction) item.append(element("p", entry.correction.note, "correction"));
  return item;
}

function place(item) {
  const before = order === "newest" ? (a, b) => a > b : (a, b) => a < b;
  const next = [...list.children].find((other) => before(item.dataset.key, other.dataset.key));
  // What sorts beyond the last loaded entry stays hidden while there are more to load.
  if (!next && "more" in list.dataset) return;
  list.insertBefore(item, next ?? null);
}

function apply(doc) {
  if ((positions.get(doc.id) ?? 0) >= n(doc.position)) return;
  positions.set(doc.id, n(doc.position));
  document.getElementById(doc.id)?.remove();
  if (doc.status === "published") place(render(doc));
}

function snapshot(page) {
  list.replaceChildren();
  positions.clear();
  if (page.next) list.dataset.more = "";
  else delete list.dataset.more;
  for (const entry of page.entries) {
    positions.set(entry.id, n(entry.position));
    list.append(render(entry));
  }
}

for (const time of list.querySelectorAll("time")) time.textContent = clock.format(new Date(time.dateTime));

const stream = new EventSource(`/v1/feeds/${feed}/stream?last_event_id=${list.dataset.position}&order=${order}&snapshot=50`);
const on = (name, act) => stream.addEventListener(name, (event) => act(JSON.parse(event.data)));
on("entry", apply);
on("retraction", apply);
on("feed", (doc) => { document.title = document.getElementById("title").textContent = doc.title; });
on("reset", () => { list.replaceChildren(); positions.clear(); });
on("snapshot", snapshot);
on("live", () => { state.textContent = "live"; });
on("bye", () => { state.textContent = "reconnecting"; });
stream.onerror = () => { state.textContent = "reconnecting"; };
