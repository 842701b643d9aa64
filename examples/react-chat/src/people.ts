/** The users of this example. */
export const PEOPLE = ['usr_alice', 'usr_bob', 'usr_carol'];

/** `usr_alice` → `Alice`; your users have real names. */
export function nameOf(user: string): string {
  const name = user.replace(/^usr_/, '');
  return name.charAt(0).toUpperCase() + name.slice(1);
}

/** A colour for an avatar, as a hue: by the golden angle, so that neighbours differ. */
export function hueOf(user: string): number {
  return ([...user].reduce((sum, letter) => sum + letter.codePointAt(0)!, 0) * 137) % 360;
}
