// The sign-in form, which takes the place of the page while the gateway wants its token.

import { NO_ANSWER, locked, signIn } from "./api.js";

export function signInForm(form, app) {
  const problem = form.querySelector(".problem");
  const show = (yes) => {
    if (form.hidden !== yes) return;
    [form.hidden, app.hidden] = [!yes, yes];
    if (yes) form.elements.token.focus();
  };
  locked.addEventListener("locked", () => show(true));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      if (await signIn(form.elements.token.value.trim())) return location.reload();
      problem.textContent = "That is not the token of this gateway. Check it and try again.";
    } catch {
      problem.textContent = NO_ANSWER;
    }
    form.elements.token.select();
  });

  return {
    isShown: () => !form.hidden,
    opened: () => ([form.hidden, app.hidden] = [true, false]),
  };
}
