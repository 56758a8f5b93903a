// The little that the page does by itself: it says when nobody looks, keeps the focus where it was, knows a few keys.
"use strict";
(() => {
  const tell = (name, value) => { if (typeof emitEvent === "function") emitEvent(name, value); };
  document.addEventListener("visibilitychange", () => tell("seen", !document.hidden));

  // What is shown anew takes its buttons away; whoever had one focused has its successor.
  let kept = null;
  document.addEventListener("focusin", (event) => { kept = event.target.dataset ? event.target.dataset.keep || null : null; });
  new MutationObserver(() => {
    if (!kept || document.activeElement !== document.body) return;
    const next = document.querySelector(`[data-keep="${CSS.escape(kept)}"]`);
    if (next) next.focus({ preventScroll: true });
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme]")) return;
    const dark = !document.body.classList.contains("body--dark");
    document.cookie = `akr_theme=${dark ? "dark" : "light"}; path=/; max-age=31536000; samesite=strict`;
    tell("theme", dark);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable], [role=dialog]")) return;
    const link = document.querySelectorAll("header nav a")[Number(event.key) - 1];
    if (link) link.click();
  });
})();
