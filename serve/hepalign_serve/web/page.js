// Small helpers of the page's scripts.
export const $ = (id) => document.getElementById(id);
export const radio = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
export const radios = (name) => [...document.querySelectorAll(`input[name="${name}"]`)];

export function make(tag, words = {}, ...content) {
  const made = Object.assign(document.createElement(tag), words);
  made.append(...content);
  return made;
}

export function say(text, wrong = false) {
  $("message").textContent = text;
  $("message").className = wrong ? "wrong" : "";
}

/** An event's handler whose refusals are told, not lost. */
export const told = (work) => async (event) => {
  event?.preventDefault?.();
  try {
    await work(event);
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.code ? `${error.message} [${error.code}]` : error.message, true);
  }
};

export function pick(name, value) {
  const found = radios(name).find((input) => input.value === value);
  if (!found || found.disabled) return false;
  found.checked = true;
  return true;
}
