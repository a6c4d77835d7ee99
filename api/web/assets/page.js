// Live updates. Everything else works without this script. On an event of the page, the page is read again, and each part
// of it that differs (an element with data-live) is replaced.
"use strict";
(() => {
  const body = document.body;
  const shown = document.getElementById("live");
  const said = document.getElementById("said");
  const QUIET = 250; // milliseconds after an event, so that several events make one update
  const STEP = 1000; // milliseconds between two reads of the steps: the steps of the service are no events
  const POLL = 3000; // milliseconds between two reads of a page with something pending, for callers without events
  const CALM = 15000; // milliseconds between two reads otherwise: whether a host is away is no event
  let timer = null;
  let reading = false;
  let again = false;

  function state(word, kind) {
    if (!shown) return;
    shown.textContent = word;
    shown.className = "live " + kind;
  }

  // The ids of the parts that the person has opened.
  function opened(part) {
    return new Set([...part.querySelectorAll("details[open][id]")].map((one) => one.id));
  }

  // What is the same about a link, what opens a part, or a button, before and after an update.
  function name(one) {
    return one.getAttribute("href") || one.parentElement.id || one.textContent;
  }

  function replace(old, fresh) {
    if (old.isEqualNode(fresh)) return false;
    const open = opened(old);
    for (const one of fresh.querySelectorAll("details[id]")) one.open = open.has(one.id);
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceWith(fresh);
    if (focused) {
      const alike = [...fresh.querySelectorAll(focused.tagName)].find((one) => name(one) === name(focused));
      (alike || document.getElementById("main")).focus({ preventScroll: true });
    }
    return true;
  }

  async function update() {
    // A page without such parts may be the answer to a form, which cannot be read again.
    if (!document.querySelector("[data-live][id]")) return;
    if (reading) { again = true; return; }
    reading = true;
    try {
      const response = await fetch(location.href, { credentials: "same-origin", headers: { accept: "text/html" } });
      if (response.redirected && response.url.includes("/sign-in")) { location.reload(); return; }
      if (!response.ok) throw new Error(String(response.status));
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      let changed = false;
      for (const part of fresh.querySelectorAll("[data-live][id]")) {
        const old = document.getElementById(part.id);
        if (old) changed = replace(old, document.adoptNode(part)) || changed;
      }
      if (changed) said.textContent = "The page was updated.";
      body.classList.remove("stale");
    } catch (error) {
      body.classList.add("stale");
    } finally {
      reading = false;
      if (again) { again = false; soon(); } else { poll(); }
    }
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(update, QUIET);
  }

  function poll() {
    if (!document.querySelector("[data-live][id]")) return;
    const pending = body.dataset.live === undefined && document.querySelector("[data-pending]");
    const wait = document.querySelector(".steps .now") ? STEP : pending ? POLL : CALM;
    clearTimeout(timer);
    timer = setTimeout(() => (document.hidden ? poll() : update()), wait);
  }

  // A link may have a token behind the #, which browsers send to nobody. Only a made-up host signs in with it at once: a
  // link of somebody else must not sign a person in as somebody else without a word.
  const field = document.querySelector("form[data-fill] input[name=token]");
  if (location.hash.startsWith("#token=")) {
    const token = location.hash.slice("#token=".length);
    history.replaceState(null, "", location.pathname + location.search);
    if (field) {
      field.value = token;
      if (field.form.dataset.fill === "send") field.form.submit();
    }
  }

  // What happens while a form is being answered: the steps that the page of the server shows.
  let progress = null;
  let steps = "";
  let stepping = false;
  let missed = false;
  async function step() {
    if (!progress) return;
    if (stepping) { missed = true; return; }
    stepping = true;
    missed = false;
    try {
      const response = await fetch(steps, { credentials: "same-origin", headers: { accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      const list = fresh.querySelector("#steps ol");
      if (list) progress.replaceChildren(...list.children);
    } catch (error) {
      // The answer to the form says what happened.
    } finally {
      stepping = false;
      if (missed) step();
    }
  }

  for (const form of document.querySelectorAll("form[data-progress]")) {
    form.addEventListener("submit", () => {
      progress = document.getElementById(form.dataset.progress);
      steps = form.dataset.steps || "";
      if (progress) {
        progress.hidden = false;
        setInterval(step, STEP);
      }
      form.classList.add("working");
    });
  }

  let source = null;
  let followed = false;

  function heard(message) {
    if (!message.data) return;
    step();
    soon();
  }

  function follow() {
    if (source) return;
    source = new EventSource("live?" + body.dataset.live);
    source.onopen = () => {
      state("live", "on");
      // What happened while the connection was away is read once.
      if (followed) soon();
      followed = true;
    };
    source.onerror = () => {
      state("not connected", "off");
      body.classList.add("stale");
      // The browser itself connects again only when it could connect at all.
      if (source && source.readyState === EventSource.CLOSED) {
        leave();
        setTimeout(() => { if (!document.hidden) follow(); }, POLL);
        soon();
      }
    };
    source.onmessage = heard;
    for (const kind of (body.dataset.kinds || "").split(" ")) source.addEventListener(kind, heard);
  }

  function leave() {
    if (source) source.close();
    source = null;
  }

  // A browser has six connections to a service for all of its tabs. One that nobody sees needs none.
  function seen() {
    if (document.hidden) leave(); else follow();
  }

  if (body.dataset.live !== undefined) {
    seen();
    document.addEventListener("visibilitychange", seen);
    addEventListener("pagehide", leave);
    addEventListener("pageshow", seen);
  }
  poll();
})();
