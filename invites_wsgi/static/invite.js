"use strict";
// The page is whole without this: it adds a button that copies, and the visitor's own time zone.
const time = document.getElementById("expires");
if (time) {
  const lang = document.documentElement.lang;
  const own = navigator.languages.filter((each) => each.split("-")[0] === lang.split("-")[0]);
  time.textContent = new Date(time.dateTime).toLocaleString([...own, lang === "en" ? "en-GB" : lang], {
    day: "numeric", month: "long", year: "numeric", hour: "numeric", minute: "2-digit", timeZoneName: "short",
  });
}
const link = document.getElementById("link");
const button = document.getElementById("copy");
if (link && button) {
  const status = document.getElementById("copied");
  button.hidden = false;
  button.addEventListener("click", async () => {
    // Emptied first, so that it is told again each time.
    status.textContent = "";
    let done = true;
    try {
      await navigator.clipboard.writeText(link.textContent);
    } catch {
      // Without HTTPS, or where it is not allowed: as it was done before there was a clipboard for pages.
      getSelection().selectAllChildren(link);
      done = document.execCommand("copy");
    }
    setTimeout(() => { status.textContent = done ? button.dataset.done : button.dataset.failed; }, 50);
  });
}
